//! Frames worth mutating: the first of each shape and verdict that was met.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use fastrand::Rng;
use portcullis_common::policy::Reason;

use super::frame::{ETHERNET_LEN, ethertype, protocol};

/// Frames kept; beyond, a new one takes the place of any other.
const CAPACITY: usize = 16_384;
/// Lengths in bytes that tell two shapes apart. Few of them, and most of them short: long frames
/// take the kernel much longer, and say no more.
const LENGTHS: [usize; 4] = [34, 54, 80, 300];
/// VLAN tags and extension headers that tell two shapes apart.
const DEPTH: usize = 12;

pub struct Corpus {
    rng: Rng,
    frames: Vec<Vec<u8>>,
    shapes: HashSet<u64>,
}

impl Corpus {
    /// The same seed and the same frames give the same mutants.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), frames: Vec::new(), shapes: HashSet::new() }
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Keeps the frame if nothing of its shape and verdict was met before.
    pub fn offer(&mut self, frame: &[u8], reason: Reason) {
        if !self.shapes.insert(shape(frame, reason)) {
            return;
        }
        if self.frames.len() < CAPACITY {
            self.frames.push(frame.to_vec());
        } else {
            let at = self.rng.usize(..CAPACITY);
            self.frames[at] = frame.to_vec();
        }
    }

    /// A frame with one to four changes; `None` as long as there is none to change.
    pub fn mutant(&mut self, max_len: usize) -> Option<Vec<u8>> {
        let mut frame = self.rng.choice(&self.frames)?.clone();
        for _ in 0..self.rng.usize(1..=4) {
            self.mutate(&mut frame);
        }
        frame.truncate(max_len);
        // The kernel runs no program on less than an Ethernet header.
        if frame.len() < ETHERNET_LEN {
            frame.resize(ETHERNET_LEN, 0);
        }
        Some(frame)
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            frame.push(self.rng.u8(..));
        }
        // Most of what is decided on lies in front.
        let front = frame.len().min(if self.rng.u8(0..4) == 0 { usize::MAX } else { 96 });
        let at = self.rng.usize(..front);
        match self.rng.u8(0..9) {
            0 => frame[at] ^= 1 << self.rng.u8(0..8),
            1 => frame[at] = self.rng.u8(..),
            2 => frame[at] = self.rng.choice([0, 1, 4, 0x45, 0x4f, 0x7f, 0x80, 0xff]).unwrap_or(0),
            3 => frame.truncate(at),
            4 => frame[at] = frame[at].wrapping_add(self.rng.u8(0..=8)).wrapping_sub(4),
            5 => self.repeat(frame, at),
            6 => drop(frame.drain(at..(at + self.rng.usize(1..=8)).min(frame.len()))),
            7 => self.tag(frame),
            _ => self.splice(frame, at),
        }
    }

    /// Some bytes once more: one more header of a chain, or of a stack.
    fn repeat(&mut self, frame: &mut Vec<u8>, at: usize) {
        let end = (at + 4 * self.rng.usize(1..=10)).min(frame.len());
        let again = frame[at..end].to_vec();
        frame.splice(at..at, again);
    }

    /// One more VLAN tag in front.
    fn tag(&mut self, frame: &mut Vec<u8>) {
        let tag = self.rng.choice(ethertype::TAGS).unwrap_or(ethertype::DOT1Q).to_be_bytes();
        let at = frame.len().min(12);
        frame.splice(at..at, [tag[0], tag[1], 0, self.rng.u8(..)]);
    }

    /// Goes on as another frame does, from the same offset or from another.
    fn splice(&mut self, frame: &mut Vec<u8>, at: usize) {
        let Some(other) = self.rng.choice(&self.frames) else { return };
        let from = if self.rng.bool() { at } else { self.rng.usize(..=other.len()) };
        frame.truncate(at);
        frame.extend(other.get(from..).unwrap_or_default());
    }
}

/// What makes two frames different in kind: the headers' kinds and flags, the verdict, and
/// roughly the length.
fn shape(frame: &[u8], reason: Reason) -> u64 {
    let mut hasher = DefaultHasher::new();
    reason.name().hash(&mut hasher);
    LENGTHS.iter().filter(|len| frame.len() >= **len).count().hash(&mut hasher);
    let pair = |at: usize| frame.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut at = 12;
    let mut kind = pair(at);
    for _ in 0..DEPTH {
        kind.hash(&mut hasher);
        if !kind.is_some_and(|kind| ethertype::TAGS.contains(&kind)) {
            break;
        }
        at += 4;
        kind = pair(at);
    }
    let packet = frame.get(at + 2..).unwrap_or_default();
    match kind {
        Some(ethertype::IPV4) => {
            let fragment = packet.get(6..8).map(|pair| (pair[0] & 0x20, pair[0] & 0x1f, pair[1]));
            let place = fragment.map(|(more, high, low)| (more, high == 0 && low == 0));
            (packet.first(), packet.get(9), place).hash(&mut hasher);
        }
        Some(ethertype::IPV6) => chain(packet).hash(&mut hasher),
        _ => {}
    }
    hasher.finish()
}

/// The kinds of the headers behind an IPv6 header.
fn chain(packet: &[u8]) -> Vec<Option<u8>> {
    let mut kind = packet.get(6).copied();
    let mut at = 40;
    let mut kinds = vec![kind];
    while kinds.len() < DEPTH {
        let (Some(&next), Some(&len)) = (packet.get(at), packet.get(at + 1)) else { break };
        at += match kind {
            Some(protocol::AUTHENTICATION) => 4 * (usize::from(len) + 2),
            Some(protocol::FRAGMENT) => 8,
            Some(protocol::TCP | protocol::UDP | protocol::ICMPV6) => break,
            _ => 8 * (usize::from(len) + 1),
        };
        kind = Some(next);
        kinds.push(kind);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::frame::Frame;

    #[test]
    fn one_frame_of_a_shape_is_kept() {
        let mut corpus = Corpus::new(1);
        let frame = Frame::from([192, 0, 2, 1].into());
        corpus.offer(&frame.bytes(), Reason::PassNoMatch);
        corpus.offer(&Frame::from([192, 0, 2, 2].into()).bytes(), Reason::PassNoMatch);
        assert_eq!(corpus.len(), 1);
        corpus.offer(&frame.bytes(), Reason::DropDenied);
        corpus.offer(&frame.clone().udp(443).bytes(), Reason::PassNoMatch);
        corpus.offer(&frame.tags(&[ethertype::DOT1AD]).bytes(), Reason::PassNoMatch);
        assert_eq!(corpus.len(), 4);
    }

    #[test]
    fn the_same_seed_gives_the_same_mutants() {
        let mutants = || {
            let mut corpus = Corpus::new(7);
            corpus.offer(&Frame::from([192, 0, 2, 1].into()).bytes(), Reason::PassNoMatch);
            corpus.offer(&[0; 14], Reason::PassNotIp);
            (0..1_000).map(move |_| corpus.mutant(100).expect("a frame")).collect::<Vec<_>>()
        };
        assert_eq!(mutants(), mutants());
        assert!(mutants().iter().all(|frame| (ETHERNET_LEN..=100).contains(&frame.len())));
    }
}
