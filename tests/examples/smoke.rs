use portcullis::config::Config;
use portcullis::{
    capture::{
        events::{self, Event},
        probes::Probes,
    },
    kernel,
};
use std::time::*;
fn main() -> anyhow::Result<()> {
    let mut c = Config::default();
    c.kernel.pin_dir = "/sys/fs/bpf/pc-smoke".into();
    let l = kernel::load(&c)?;
    let t = Instant::now();
    let probes = Probes::start(l.ebpf, "/proc".into(), vec![])?;
    println!("start {:?} {:?}", t.elapsed(), probes.state().probed);
    let mut ring = l.events;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        while let Some(i) = ring.next() {
            match events::decode(&i).unwrap() {
                Event::TlsData(h, d) => println!(
                    "{} {} c{} off {} len {} {:?} {:?}",
                    events::comm(&h),
                    h.direction,
                    h.connection,
                    h.offset,
                    h.len,
                    kernel::flow_addresses(&h.flow),
                    String::from_utf8_lossy(&d[..d.len().min(60)])
                ),
                e => println!("{e:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{:?}", l.losses.all()?);
    let t = Instant::now();
    drop(probes);
    println!("drop {:?}", t.elapsed());
    kernel::detach(&c.kernel.pin_dir)?;
    Ok(())
}
