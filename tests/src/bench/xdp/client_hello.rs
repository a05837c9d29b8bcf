//! What TLS fingerprints cost: a packet with a whole hello, and one that has nothing to do with one.
//! Each is the time with fingerprints less the time without, measured in turns.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};

use super::{Better, Case, Plan, alone, on_last_cpu};
use crate::packet::harness::{Hook, Input, Kernel};
use crate::packet::hello::{Fingerprints, Flow, REAL, of_size};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

/// Nanoseconds that a hello may cost, and that a packet which is none may cost more.
const TARGET: f64 = 1_500.0;
const OTHER_TARGET: f64 = 5.0;

/// Nanoseconds that fingerprints add to a packet, by round.
#[derive(Clone, Debug, Default)]
struct Added {
    /// A hello of OpenSSL in the SYN, which opens the flow anew each time.
    hello: Vec<f64>,
    /// The same of 1,800 bytes, as with keys of post-quantum cryptography.
    long_hello: Vec<f64>,
    /// A segment later in a flow that has its fingerprint.
    other: Vec<f64>,
}

pub fn run(plan: Plan) -> Result<[Case; 3]> {
    let Added { hello, long_hello, other } =
        on_last_cpu(|| measure(plan.rounds, plan.repeat / 10))?;
    let unit = "ns/packet";
    Ok([
        alone("client_hello", unit, &hello, TARGET, Better::Lower),
        alone("client_hello_1800_bytes", unit, &long_hello, TARGET, Better::Lower),
        alone("client_hello_none", unit, &other, OTHER_TARGET, Better::Lower),
    ])
}

fn measure(rounds: usize, repeat: u32) -> Result<Added> {
    let mut with = Fingerprints::new()?;
    let without = Kernel::new()?;
    let (_, hello) = REAL[0];
    // The longest frame that the kernel makes for tests in one buffer.
    let long_hello = of_size(1800);
    for hello in [hello, &long_hello] {
        let key = with.key(hello).expect("a hello");
        with.learn(key)?;
    }
    let [short, long, other] = [1, 2, 3].map(|port| Flow::from(CLIENT, port));
    let in_syn = |flow: &Flow, hello: &[u8]| flow.frame(flow.first.wrapping_sub(1), 0x02, hello);
    with.show(Hook::Xdp, &[other.syn(), other.segment(0, hello)])?;
    ensure!(with.of(&other).is_some(), "the flow has no fingerprint");
    let frames = [
        in_syn(&short, hello),
        in_syn(&long, &long_hello),
        other.segment(hello.len(), b"any bytes that come later"),
    ];
    let mut added = Added::default();
    for _ in 0..rounds {
        for (frame, sum) in
            frames.iter().zip([&mut added.hello, &mut added.long_hello, &mut added.other])
        {
            sum.push(time(&with.kernel, frame, repeat)? - time(&without, frame, repeat)?);
        }
    }
    ensure!(with.of(&short).is_some() && with.of(&long).is_some(), "a hello was not read");
    Ok(added)
}

/// Mean time of one run, in nanoseconds.
fn time(kernel: &Kernel, frame: &[u8], repeat: u32) -> Result<f64> {
    /// The kernel tells whole nanoseconds only; the mean of several runs tells more.
    const PARTS: u32 = 10;
    let mut sum = 0.0;
    for _ in 0..PARTS {
        let input = Input { bytes: frame, linear: None, repeat: repeat / PARTS };
        let (_, mean) = kernel.run(Hook::Xdp, input)?;
        sum += mean.as_nanos() as f64;
    }
    Ok(sum / f64::from(PARTS))
}
