//! The gate in front of the rules of flows and of TLS fingerprints.

use portcullis_common::{
    gate::{self, Bit},
    settings::{Settings, feature},
};

use crate::{atomic, headers::Packet, maps::PC_FLOW_GATE};

/// Whether the packet's flow may have rules, by the gate.
#[inline(always)]
pub fn may_have_rules(packet: &Packet, settings: &Settings) -> bool {
    settings.features & feature::FLOW_RULES != 0
        && packet.port.is_known()
        && is_open(packet.flow_hash(settings.seed), settings)
}

/// Whether the gate is open to the flow of this hash.
#[inline(always)]
pub fn is_open(hash: u64, settings: &Settings) -> bool {
    let Bit { word, mask } = gate::flow_bit(hash, settings.flow_gate_words);
    // A gate that can't be read is open.
    [word, word + 1]
        .into_iter()
        .any(|word| PC_FLOW_GATE.get(word).is_none_or(|bits| bits & mask != 0))
}

/// Lets the packets of the flow through the gate, to where its rules are.
#[inline(always)]
pub fn open_gate(hash: u64, settings: &Settings) {
    let Bit { word, mask } = gate::flow_bit(hash, settings.flow_gate_words);
    for word in [word, word + 1] {
        if let Some(word) = PC_FLOW_GATE.get_ptr_mut(word) {
            // SAFETY: an aligned u64 of the map.
            unsafe { atomic::or(word, mask) };
        }
    }
}
