//! A small shop with a JSON API: what NGINX serves in the laboratory.
//!
//! | request | answer |
//! |---|---|
//! | `POST /api/login` `{"username":…,"password":…}` | 200 with a token for [`USER`] and [`PASSWORD`], else 401 |
//! | `GET /api/products` | 200, every product |
//! | `GET /api/products/{id}` | 200, or 404 |
//! | `POST /api/cart` `{"product":…,"quantity":…}` | 201 |
//! | any other path; another method on these | 404; 405 |

mod api;
mod http;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use crate::netns::Lab;
use crate::process::Process;
use crate::{programs, wait};

/// The one account there is.
pub const USER: &str = "alice@shop.test";
pub const PASSWORD: &str = "correct horse battery staple";
/// Where it listens on the server host: its loopback only.
pub const ADDRESS: &str = "127.0.0.1:8080";
const PATIENCE: Duration = Duration::from_secs(10);

/// The running shop; stopped when this is dropped.
pub struct Shop {
    _process: Process,
}

impl Shop {
    /// Starts it on the server host and waits until it accepts connections.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let mut command = Command::new(programs::find("portcullis-lab-shop")?);
        command.arg(ADDRESS);
        let mut process = lab.spawn(lab.server(), command, "shop")?;
        let address: SocketAddr = ADDRESS.parse()?;
        lab.server().run(|| {
            wait::until(PATIENCE, "the shop to accept connections", || {
                process.must_run()?;
                Ok(TcpStream::connect(address).ok())
            })
        })?;
        Ok(Self { _process: process })
    }
}

/// Answers for ever, one thread per connection; the proxy in front bounds how many there are.
pub fn serve(listener: &TcpListener) -> ExitCode {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => drop(thread::spawn(move || http::answer_all(stream))),
            Err(error) => {
                eprintln!("cannot accept: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
