//! The laboratory's shop API, behind NGINX: `portcullis-lab-shop ADDRESS:PORT`.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use portcullis_tests::shop;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).and_then(|address| address.parse::<SocketAddr>().ok());
    let Some(address) = address else {
        eprintln!("usage: portcullis-lab-shop ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match TcpListener::bind(address) {
        Ok(listener) => shop::serve(&listener),
        Err(error) => {
            eprintln!("cannot listen on {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
