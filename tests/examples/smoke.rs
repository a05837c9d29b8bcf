use portcullis::config::Config;
use portcullis::kernel;
fn main() -> anyhow::Result<()> {
    let mut c = Config::default();
    c.kernel.pin_dir = "/sys/fs/bpf/pc-smoke".into();
    let mut l = kernel::load(&c)?;
    for (name, p) in l.ebpf.programs() {
        println!("{name} {:?}", p.prog_type());
    }
    let btf = aya::Btf::from_sys_fs()?;
    let names: Vec<String> = l.ebpf.programs().map(|(n, _)| n.to_owned()).collect();
    for n in names {
        use aya::programs::Program::*;
        let r = match l.ebpf.program_mut(&n).unwrap() {
            Xdp(x) => x.load(),
            SchedClassifier(x) => x.load(),
            UProbe(x) => x.load(),
            BtfTracePoint(x) => x.load(&n, &btf),
            _ => unreachable!(),
        };
        match r {
            Ok(()) => {
                let i = l.ebpf.program(&n).unwrap().info()?;
                println!(
                    "{n} ok insns {:?} jited {}",
                    i.verified_instruction_count(),
                    i.size_jitted()
                )
            }
            Err(e) => println!("{n} {e:#}\n{:?}", e),
        }
    }
    println!("{:?}", l.notes);
    println!("{:?}", kernel::detach(&c.kernel.pin_dir)?);
    Ok(())
}
