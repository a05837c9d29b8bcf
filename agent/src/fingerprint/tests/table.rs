//! Learned fingerprints.

use crate::fingerprint::{Known, Table};

fn known(ja4: &str) -> Known {
    Known { ja4: ja4.into(), ja3: "ja3".into() }
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut table = Table::new(2);
    assert!(table.learn(1, known("a")).is_new);
    assert!(table.learn(2, known("b")).is_new);
    assert!(!table.learn(1, known("a")).is_new, "and used");
    let learned = table.learn(3, known("c"));
    assert_eq!((learned.is_new, learned.evicted), (true, Some((2, known("b")))));
    assert_eq!(table.get(2), None);
    assert_eq!(table.keys_of("b").count(), 0);
    assert_eq!(table.get(1).map(|known| &*known.ja4), Some("a"));
    assert_eq!(table.learn(4, known("d")).evicted, Some((3, known("c"))));
    assert_eq!((table.len(), table.counts()), (2, (4, 2)));
}

#[test]
fn names_lead_to_every_key() {
    let mut table = Table::new(8);
    for key in [5, 3, 9] {
        table.learn(key, known("same"));
    }
    table.learn(7, known("other"));
    assert_eq!(table.keys_of("same").collect::<Vec<_>>(), [3, 5, 9]);
    assert_eq!(table.keys_of("unseen").count(), 0);
    // A key that comes to mean something else, after a new seed, is forgotten as what it was.
    assert!(table.learn(3, known("other")).is_new);
    assert_eq!(table.keys_of("same").collect::<Vec<_>>(), [5, 9]);
    assert_eq!(table.keys_of("other").collect::<Vec<_>>(), [3, 7]);
}
