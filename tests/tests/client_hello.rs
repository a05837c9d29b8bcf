//! TLS fingerprints in the kernel: whatever way a hello comes, its flow has the key that userspace
//! finds for it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use portcullis_common::event::HelloCount;
use portcullis_common::fingerprint::MAX_HELLO;
use portcullis_common::settings::REPORTS_PER_SECOND;
use portcullis_tests::packet::extension::Extension;
use portcullis_tests::packet::frame::ethertype;
use portcullis_tests::packet::harness::{Hook, Input};
use portcullis_tests::packet::hello::{Fingerprints, Flow, REAL, in_records, of_size};

fn v4() -> IpAddr {
    "203.0.113.10".parse().unwrap()
}

fn v6() -> IpAddr {
    "2001:db8:1:3::9".parse().unwrap()
}

fn v4_of(number: usize) -> IpAddr {
    [203, 0, 113, number as u8].into()
}

fn v6_of(number: usize) -> IpAddr {
    [0x2001, 0xdb8, 1, number as u16, 0, 0, 0, 9].into()
}

/// Flows with ports of their own.
struct Flows(u16);

impl Flows {
    fn next(&mut self, source: IpAddr) -> Flow {
        self.0 += 1;
        Flow::from(source, self.0)
    }
}

/// Segments of `len` bytes each.
fn segments(flow: &Flow, bytes: &[u8], len: usize) -> Vec<Vec<u8>> {
    let cut = bytes.chunks(len).enumerate();
    cut.map(|(number, piece)| flow.segment(number * len, piece)).collect()
}

fn with_syn(flow: &Flow, segments: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    [vec![flow.syn()], segments].concat()
}

#[test]
fn real_hellos_in_one_segment() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let mut keys = Vec::new();
    for (number, (name, hello)) in REAL.into_iter().enumerate() {
        let key = prints.key(hello).ok().context(name)?;
        keys.push(key);
        for hook in Hook::ALL {
            // Each source has its budget of reports.
            for source in [v4_of(number), v6_of(number)] {
                let flow = flows.next(source);
                prints.show(hook, &with_syn(&flow, segments(&flow, hello, 1460)))?;
                assert_eq!(prints.of(&flow), Some(key), "{name} {hook:?} {source}");
                assert_eq!(prints.reported(), [(flow.key(), key, hello.to_vec())], "{name}");
            }
        }
        prints.learn(key)?;
        let flow = flows.next(v4());
        prints.show(Hook::Xdp, &with_syn(&flow, segments(&flow, hello, 1460)))?;
        assert_eq!(prints.of(&flow), Some(key), "{name}");
        assert_eq!(prints.reported(), [], "{name}, known");
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), REAL.len());
    assert_eq!(prints.count(HelloCount::Fingerprinted)?, 5 * REAL.len() as u64);
    Ok(())
}

#[test]
fn every_split_into_two_and_three_segments() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let (_, hello) = REAL[3];
    let key = prints.key(hello).expect("a hello");
    prints.learn(key)?;
    for hook in Hook::ALL {
        for at in 1..hello.len() {
            let flow = flows.next(if at % 2 == 0 { v4() } else { v6() });
            let (one, two) = hello.split_at(at);
            let frames = vec![flow.segment(0, one), flow.segment(at, two)];
            prints.show(hook, &with_syn(&flow, frames.clone()))?;
            assert_eq!(prints.of(&flow), Some(key), "{hook:?}, at {at}");

            let flow = flows.next(v4());
            let swapped = vec![flow.segment(at, two), flow.segment(0, one)];
            prints.show(hook, &with_syn(&flow, swapped))?;
            assert_eq!(prints.of(&flow), Some(key), "{hook:?}, at {at}, swapped");

            let flow = flows.next(v4());
            let middle = at.div_ceil(2);
            let three = [
                flow.segment(middle, &hello[middle..at]),
                flow.segment(at, two),
                flow.segment(0, &hello[..middle]),
            ];
            prints.show(hook, &with_syn(&flow, three.to_vec()))?;
            assert_eq!(prints.of(&flow), Some(key), "{hook:?}, at {middle} and {at}");
        }
    }
    assert_eq!(prints.count(HelloCount::Unreported)?, 0);
    Ok(())
}

#[test]
fn segments_of_any_size_in_any_order() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let mut rng = fastrand::Rng::with_seed(1);
    for size in [400, 1461, 1800, 4000, MAX_HELLO as usize] {
        let hello = of_size(size);
        assert_eq!(hello.len(), size);
        let key = prints.key(&hello).expect("a hello");
        prints.learn(key)?;
        // The kernel makes no longer frames for tests.
        for len in [1, 2, 5, 100, 536, 1460, 3000] {
            let flow = flows.next(v4());
            let mut frames = segments(&flow, &hello, len);
            prints.show(Hook::Xdp, &with_syn(&flow, frames.clone()))?;
            assert_eq!(prints.of(&flow), Some(key), "{size} bytes by {len}");

            let flow = flows.next(v6());
            frames = segments(&flow, &hello, len);
            frames.reverse();
            prints.show(Hook::Tc, &with_syn(&flow, frames))?;
            assert_eq!(prints.of(&flow), Some(key), "{size} bytes by {len}, backwards");

            let flow = flows.next(v4());
            frames = segments(&flow, &hello, len);
            // No more than 8 pieces wait at a time.
            frames.chunks_mut(8).for_each(|near| rng.shuffle(near));
            prints.show(Hook::Xdp, &with_syn(&flow, frames))?;
            assert_eq!(prints.of(&flow), Some(key), "{size} bytes by {len}, mixed");
        }
    }
    Ok(())
}

#[test]
fn retransmitted_and_overlapping_segments() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let hello = of_size(1800);
    let key = prints.key(&hello).expect("a hello");
    prints.learn(key)?;
    let mut rng = fastrand::Rng::with_seed(2);
    for round in 0..200 {
        let flow = flows.next(v4());
        let mut frames = Vec::new();
        for _ in 0..rng.usize(1..20) {
            let at = rng.usize(..hello.len());
            let end = rng.usize(at + 1..=hello.len());
            frames.push(flow.segment(at, &hello[at..end]));
        }
        frames.extend(segments(&flow, &hello, 700));
        // What comes when the hello is whole is another matter.
        prints.show(Hook::ALL[round % 2], &with_syn(&flow, frames))?;
        assert_eq!(prints.of(&flow), Some(key), "round {round}");
    }
    Ok(())
}

#[test]
fn any_number_of_records() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let (_, hello) = REAL[0];
    let key = prints.key(hello).expect("a hello");
    prints.learn(key)?;
    for lengths in [&[1][..], &[2], &[3, 1], &[5, 100], &[330], &[60, 7, 1]] {
        let records = in_records(&hello[5..], lengths);
        for len in [1, 7, 333, 1460, 3000] {
            let flow = flows.next(v4());
            prints.show(Hook::Xdp, &with_syn(&flow, segments(&flow, &records, len)))?;
            assert_eq!(prints.of(&flow), Some(key), "records {lengths:?}, segments {len}");
        }
    }
    Ok(())
}

#[test]
fn behind_any_headers_and_before_padding() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let hello = of_size(1800);
    let key = prints.key(&hello).expect("a hello");
    prints.learn(key)?;
    let tags = [ethertype::DOT1AD, ethertype::DOT1Q, ethertype::QINQ, ethertype::DOT1Q];
    let extensions = Extension::KINDS.map(|(_, extension)| extension);
    for hook in Hook::ALL {
        for count in 0..=tags.len() {
            let mut options = flows.next(v4());
            options.frame = options.frame.tags(&tags[..count]).options(10);
            let mut extended = flows.next(v6());
            extended.frame = extended.frame.tags(&tags[..count]).extensions(&extensions);
            for flow in [options, extended] {
                let mut frames = with_syn(&flow, segments(&flow, &hello, 900));
                // Bytes of the frame behind the packet are none of the flow's.
                frames.iter_mut().for_each(|frame| frame.extend([0x5a; 13]));
                prints.show(hook, &frames)?;
                assert_eq!(prints.of(&flow), Some(key), "{hook:?} {flow:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn in_frames_that_cannot_be_read_in_place() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let hello = of_size(5000);
    let key = prints.key(&hello).expect("a hello");
    prints.learn(key)?;
    for with_syn in [true, false] {
        let flow = flows.next(v4());
        if with_syn {
            prints.show(Hook::Xdp, &[flow.syn()])?;
        }
        for frame in segments(&flow, &hello, 3000) {
            let input = Input { bytes: &frame, linear: Some(60), repeat: 1 };
            prints.kernel.run(Hook::Xdp, input)?;
        }
        assert_eq!(prints.of(&flow), Some(key), "SYN {with_syn}");
    }
    Ok(())
}

#[test]
fn flows_without_a_syn_and_with_data_in_it() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let hello = of_size(1800);
    let key = prints.key(&hello).expect("a hello");
    prints.learn(key)?;
    for hook in Hook::ALL {
        for len in [6, 1000, 1460, 1800] {
            let flow = flows.next(v4());
            prints.show(hook, &segments(&flow, &hello, len))?;
            assert_eq!(prints.of(&flow), Some(key), "{hook:?}, no SYN, by {len}");

            let flow = flows.next(v6());
            let (in_syn, rest) = hello.split_at(len);
            let frames =
                [flow.frame(flow.first.wrapping_sub(1), 0x02, in_syn), flow.segment(len, rest)];
            prints.show(hook, &frames)?;
            assert_eq!(prints.of(&flow), Some(key), "{hook:?}, {len} bytes in the SYN");
        }
    }
    Ok(())
}

#[test]
fn a_flow_keeps_its_fingerprint_until_its_ends_meet_again() -> Result<()> {
    let prints = Fingerprints::new()?;
    let [(_, one), _, (_, other), ..] = REAL;
    let (key, other_key) = (prints.key(one).unwrap(), prints.key(other).unwrap());
    let flow = Flow::from(v4(), 1000);
    prints.show(Hook::Xdp, &with_syn(&flow, segments(&flow, one, 1460)))?;
    // Later in the flow, and at its beginning once more.
    prints.show(Hook::Xdp, &[flow.segment(one.len(), other), flow.segment(0, other)])?;
    assert_eq!(prints.of(&flow), Some(key));

    let again = Flow { first: 77_000, ..flow.clone() };
    prints.show(Hook::Xdp, &[again.syn()])?;
    assert_eq!(prints.of(&flow), None);
    prints.show(Hook::Xdp, &segments(&again, other, 200))?;
    assert_eq!(prints.of(&again), Some(other_key));

    // Nor does a flow without SYN get another.
    let joined = Flow::from(v4(), 1001);
    prints.show(Hook::Xdp, &segments(&joined, one, 1460))?;
    prints.show(Hook::Xdp, &[joined.segment(9_000, other)])?;
    assert_eq!(prints.of(&joined), Some(key));
    Ok(())
}

#[test]
fn what_is_no_hello_gives_no_fingerprint() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let (_, hello) = REAL[0];
    let changed = |at: usize, value: u8| {
        let mut bytes = hello.to_vec();
        bytes[at] = value;
        bytes
    };
    let too_long = of_size(MAX_HELLO as usize + 1);
    let cases: [(&[u8], Option<HelloCount>); 7] = [
        (b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", None),
        (b"\x00", None),
        (&changed(0, 23), None),
        (&changed(1, 2), None),
        (&changed(5, 2), Some(HelloCount::Malformed)),
        (&changed(8, 0), Some(HelloCount::Malformed)),
        (&too_long, Some(HelloCount::TooLong)),
    ];
    for (number, (bytes, counted)) in cases.into_iter().enumerate() {
        let before = HelloCount::ALL.map(|what| prints.count(what).unwrap());
        let flow = Flow::from(v4(), 2000 + number as u16);
        prints.show(Hook::Xdp, &with_syn(&flow, segments(&flow, bytes, 3000)))?;
        // The flow is settled, whatever comes now.
        prints.show(Hook::Xdp, &[flow.segment(0, hello), flow.segment(bytes.len(), hello)])?;
        assert_eq!(prints.of(&flow), None, "case {number}");
        for (what, before) in HelloCount::ALL.into_iter().zip(before) {
            let expected = before + u64::from(counted == Some(what));
            assert_eq!(prints.count(what)?, expected, "case {number}, {}", what.name());
        }
    }
    assert_eq!(prints.reported(), []);
    Ok(())
}

#[test]
fn a_source_reports_no_more_than_its_budget() -> Result<()> {
    let mut prints = Fingerprints::new()?;
    let mut flows = Flows(1000);
    let (_, hello) = REAL[0];
    let most = 10 * u64::from(REPORTS_PER_SECOND);
    for _ in 0..most {
        let flow = flows.next(v4());
        prints.show(Hook::Xdp, &with_syn(&flow, segments(&flow, hello, 1460)))?;
    }
    let reported = prints.reported().len() as u64;
    let left_out = prints.count(HelloCount::Unreported)?;
    assert!(left_out > 0, "{reported} reported");
    assert_eq!(reported + left_out, most);
    Ok(())
}
