//! How a command ends when it does not end well.

use std::io;
use std::process::ExitCode;

/// A command's error, with whose fault it is.
#[derive(Debug)]
pub enum Failure {
    /// The thing asked for failed.
    Failed(anyhow::Error),
    /// The call or the configuration is wrong.
    Wrong(anyhow::Error),
    /// As `Failed`, with everything that is to be said already printed.
    Told,
    /// As `Wrong`, with everything that is to be said already printed.
    ToldWrong,
}

impl Failure {
    /// Prints the error with its causes, and gives the exit status.
    pub fn report(self) -> ExitCode {
        match &self {
            // Whoever read the output has seen enough, as in `portcullis blocks | head`.
            Self::Failed(error) if is_broken_pipe(error) => return ExitCode::SUCCESS,
            Self::Failed(error) | Self::Wrong(error) => eprintln!("portcullis: {error:#}"),
            Self::Told | Self::ToldWrong => {}
        }
        self.exit_code()
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) | Self::Told => ExitCode::from(1),
            Self::Wrong(_) | Self::ToldWrong => ExitCode::from(2),
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
