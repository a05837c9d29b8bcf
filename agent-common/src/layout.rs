//! The layout of everything shared, checked when this crate is compiled.

use core::mem::{align_of, size_of};

use crate::{event, net, policy, prefix_table, settings};

macro_rules! assert_layout {
    ($($type:ty: $size:literal, $align:literal;)*) => {
        $(const _: () = {
            assert!(size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
            assert!(align_of::<$type>() == $align, concat!("alignment of ", stringify!($type)));
        };)*
    };
}

// The sizes are the sums of the fields' sizes, so none of the types has padding.
assert_layout! {
    net::Addr: 16, 4;
    net::FlowKey: 40, 4;
    net::FlowInfo: 16, 8;
    policy::PrefixKey: 20, 4;
    policy::PrefixRules: 8, 4;
    policy::ConjunctionKey: 32, 8;
    policy::FingerprintRules: 40, 8;
    policy::Lengths: 32, 8;
    policy::Rule: 64, 8;
    policy::Limit: 64, 8;
    policy::Bucket: 16, 8;
    policy::BucketSet: 64, 8;
    policy::PacketCount: 16, 8;
    prefix_table::Slot: 24, 8;
    prefix_table::Bucket: 128, 8;
    event::TlsData: 104, 8;
    event::TlsClosed: 24, 8;
    event::FirstDrop: 40, 8;
    event::Exec: 16, 8;
    event::NoSocket: 16, 8;
    event::ClientHello: 64, 8;
    event::QuicInitial: 56, 8;
    settings::PrefixSet: 40, 8;
    settings::Settings: 136, 8;
    settings::SockOffsets: 40, 4;
    settings::SystemCalls: 40, 4;
}

#[cfg(feature = "user")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($type:ty),* $(,)?) => {
            // SAFETY: each is `repr(C)`, `Copy + 'static`, made of integers and byte arrays, and
            // has no padding (asserted above), so any bytes are a value and every byte is defined.
            $(unsafe impl aya::Pod for $type {})*
        };
    }

    pod!(
        net::Addr,
        net::FlowKey,
        net::FlowInfo,
        policy::PrefixKey,
        policy::PrefixRules,
        policy::ConjunctionKey,
        policy::FingerprintRules,
        policy::Lengths,
        policy::Rule,
        policy::Limit,
        policy::Bucket,
        policy::BucketSet,
        policy::PacketCount,
        prefix_table::Slot,
        prefix_table::Bucket,
        event::TlsData,
        event::TlsClosed,
        event::FirstDrop,
        event::Exec,
        event::NoSocket,
        event::ClientHello,
        event::QuicInitial,
        settings::PrefixSet,
        settings::Settings,
        settings::SockOffsets,
        settings::SystemCalls,
    );
}
