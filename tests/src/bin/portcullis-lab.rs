//! A laboratory to look around in: `portcullis-lab [CLIENTS] [PREFIX]`, until Ctrl-C.

use std::process::ExitCode;
use std::thread;

use portcullis_tests::netns::{Lab, clean_up_on_signals};
use portcullis_tests::nginx::{NAME, Nginx, Options};
use portcullis_tests::shop::Shop;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let clients = arguments.first().map_or(Ok(2), |count| count.parse());
    let prefix = arguments.get(1).map_or("pcx", String::as_str);
    let (Ok(clients), true) = (clients, arguments.len() <= 2) else {
        eprintln!("usage: portcullis-lab [CLIENTS] [PREFIX]");
        return ExitCode::from(2);
    };
    match run(prefix, clients) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("portcullis-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(prefix: &str, clients: usize) -> anyhow::Result<std::convert::Infallible> {
    clean_up_on_signals()?;
    let lab = Lab::new(prefix, clients)?;
    let _shop = Shop::start(&lab)?;
    let nginx = Nginx::start(&lab, &Options::default())?;
    for host in lab.clients().iter().chain([lab.server()]) {
        println!("{}: {} and {}", host.namespace(), host.v4(), host.v6());
    }
    if let Some(client) = lab.clients().first() {
        println!(
            "try: ip netns exec {} curl --cacert {} --resolve {NAME}:443:{} https://{NAME}/api/products",
            client.namespace(),
            nginx.certs().ca.display(),
            lab.server().v4()
        );
    }
    println!("laboratory {} is ready; Ctrl-C removes it", lab.name());
    loop {
        thread::park();
    }
}
