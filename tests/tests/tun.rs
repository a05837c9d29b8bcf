//! Interfaces whose packets begin with an IP header: is what comes in by them judged too?

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

use portcullis_tests::agent::Agent;
use portcullis_tests::netns::Lab;
use portcullis_tests::packet::frame::{Fragment, Frame, Tunnel};
use portcullis_tests::scenario::{SOON, block_of, host_net};
use portcullis_tests::tun::Tun;
use portcullis_tests::wait;

const PREFIX: &str = "pcx-tun";
const PORT: u16 = 4_000;
/// Blocked, another client, and the address that frames of the packet library go to.
const V4: [&str; 3] = ["203.0.113.9", "203.0.113.10", "192.0.2.1"];
const V6: [&str; 3] = ["2001:db8:1:2::9", "2001:db8:1:3::9", "2001:db8:ffff::1"];
const MARK: &[u8] = b"from the other";

struct Scene<'lab> {
    lab: &'lab Lab,
    agent: Agent<'lab>,
    tun: Tun,
}

impl<'lab> Scene<'lab> {
    fn start(lab: &'lab Lab, config: &str) -> Self {
        let config = format!("interfaces = [\"eth0\", \"tun0\"]\n{config}");
        let agent = Agent::start(lab, &config).expect("the agent");
        let tun = Tun::open(lab.server(), "tun0").expect("a tun device");
        for line in [
            "link set tun0 up",
            "address add 192.0.2.1/24 dev tun0",
            "address add 2001:db8:ffff::1/64 dev tun0 nodad",
            "route add 203.0.113.0/24 dev tun0",
            "route add 2001:db8:1::/48 dev tun0",
        ] {
            let mut ip = Command::new("ip");
            ip.args(line.split(' '));
            let output = lab.run_in(lab.server(), ip).expect("ip runs");
            assert!(output.status.success(), "ip {line}: {output:?}");
        }
        let this = Self { lab, agent, tun };
        wait::until(SOON, "the program on tun0", || Ok(this.hook())).expect("attached");
        this
    }

    fn hook(&self) -> Option<String> {
        let status = self.agent.json("status", &[]).expect("status");
        let interfaces = status["interfaces"].as_array()?;
        let tun = interfaces.iter().find(|interface| interface["name"] == "tun0")?;
        tun["hook"].as_str().map(str::to_owned)
    }

    fn listen(&self, address: &str) -> UdpSocket {
        let address = SocketAddr::new(address.parse().expect("an address"), PORT);
        let socket = self.lab.server().run(|| Ok(UdpSocket::bind(address)?)).expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket
    }

    fn packets_of(&self, source: &str) -> u64 {
        let net = host_net(source.parse().expect("an address"));
        let block = block_of(&self.agent, &net).expect("blocks").expect("the block");
        block["packets"].as_u64().expect("a number")
    }
}

fn from(source: &str) -> Frame {
    Frame::from(source.parse::<IpAddr>().expect("an address")).udp(PORT)
}

/// The packet without its Ethernet header.
fn packet(frame: &Frame) -> Vec<u8> {
    frame.bytes().split_off(frame.network_at())
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = [0; 100];
    let len = socket.recv(&mut bytes).expect("a packet comes through");
    bytes[..len].to_vec()
}

#[test]
fn a_tun_interface_is_protected() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    for (attach, hook) in [("auto", "tcx"), ("clsact", "clsact")] {
        let mut scene = Scene::start(&lab, &format!("[kernel]\nattach = \"{attach}\"\n"));
        assert_eq!(scene.hook().as_deref(), Some(hook), "{}", scene.agent.log());
        for [blocked, other, own] in [V4, V6] {
            let socket = scene.listen(own);
            scene.tun.send(&packet(&from(blocked).payload(b"first".to_vec()))).expect("sent");
            assert_eq!(received(&socket), b"first", "nothing blocks it yet");
            scene.agent.json("block", &[blocked]).expect("a block");
            scene.tun.send(&packet(&from(blocked))).expect("sent");
            scene.tun.send(&packet(&from(blocked).fragment(Fragment::LAST))).expect("sent");
            scene.tun.send(&packet(&from(other).payload(MARK.to_vec()))).expect("sent");
            // They arrive in the order in which they were sent, if they do.
            assert_eq!(received(&socket), MARK, "{hook} {blocked}");
            assert_eq!(scene.packets_of(blocked), 2, "{hook} {blocked}");
        }
        let Scene { tun, mut agent, .. } = scene;
        drop(tun);
        let gone =
            |event: &serde_json::Value| event["event"] == "detach" && event["interface"] == "tun0";
        agent.wait_for_event(SOON, "the end of tun0", gone).expect("noticed");
        for [blocked, ..] in [V4, V6] {
            agent.json("unblock", &[blocked]).expect("lifted");
        }
        agent.stop().expect("stopped");
        std::fs::remove_file(lab.dir().join("events.jsonl")).expect("a log");
    }
}

/// Tunnels that come in by an interface without Ethernet headers, switched on by a reload.
#[test]
fn tunnels_are_looked_into_when_configured() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    let mut scene = Scene::start(&lab, "");
    let [blocked, other, own] = V4;
    scene.agent.json("block", &[blocked]).expect("a block");
    scene.agent.json("block", &[V6[0]]).expect("a block");
    let socket = scene.listen(own);
    let gre = Tunnel::Gre { checksum: true, key: true, sequence: false };
    let tunnels = || {
        [(Tunnel::Ip, blocked), (gre, blocked), (Tunnel::Ip, V6[0]), (gre, V6[0])]
            .map(|(tunnel, inner)| packet(&from(other).carries(tunnel, &from(inner))))
    };
    let send_all = |scene: &mut Scene| {
        for bytes in tunnels() {
            scene.tun.send(&bytes).expect("sent");
        }
        scene.tun.send(&packet(&from(other).payload(MARK.to_vec()))).expect("sent");
        assert_eq!(received(&socket), MARK);
        [blocked, V6[0]].map(|source| scene.packets_of(source))
    };
    assert_eq!(send_all(&mut scene), [0, 0], "off by default");
    let config = "interfaces = [\"eth0\", \"tun0\"]\nkernel.tunnels = true";
    scene.agent.reload(config).expect("signalled");
    let reloaded = |event: &serde_json::Value| event["event"] == "reload";
    scene.agent.wait_for_event(SOON, "the reload", reloaded).expect("reloaded");
    assert_eq!(send_all(&mut scene), [2, 2]);
}
