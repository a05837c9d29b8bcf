//! Interfaces by name and by pattern, of this and other network namespaces.

use std::collections::HashMap;
use std::path::PathBuf;

use super::section::{Place, Section, key};
use super::types::NetNamespace;
use super::words::{INTERFACE, NAMESPACE_PATH};

/// Whether `interfaces` name this one. An entry may have `*` for any letters and `?` for one; an
/// entry after `!` takes away what others give.
pub fn selects(interfaces: &[String], name: &str) -> bool {
    let mut selected = false;
    for entry in interfaces {
        match entry.strip_prefix('!') {
            Some(excluded) if matches(excluded.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => selected |= matches(entry.as_bytes(), name.as_bytes()),
        }
    }
    selected
}

/// Whether an entry of `interfaces` stands for others than the one interface of this name.
pub fn is_pattern(entry: &str) -> bool {
    entry.starts_with('!') || entry.contains(['*', '?'])
}

/// Both are as short as the names of interfaces.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, n)| matches(pattern, n))
        }
        (Some((b'?', rest)), Some((_, name))) => matches(rest, name),
        (Some((letter, rest)), Some((first, name))) => letter == first && matches(rest, name),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Reads the list of namespaces; paths must differ.
pub(super) fn read(top: &mut Section, namespaces: &mut Vec<NetNamespace>) {
    let mut paths: HashMap<PathBuf, Place> = HashMap::new();
    top.tables("namespace", None, |s| {
        let doc = "Path of another network namespace in which packets are dropped, such as \
                   `/run/netns/blue`; it may come and go.";
        let path = s.required(key("namespace.path", doc), &NAMESPACE_PATH);
        let doc = "Its interfaces, as in `interfaces`.";
        let mut interfaces = Vec::new();
        let list = s.list(key("namespace.interfaces", doc), &INTERFACE, &mut interfaces);
        if interfaces.is_empty() {
            let message = "names no network interface: write for example interfaces = [\"eth0\"]";
            s.missing(&list.list, message.to_owned());
        }
        let Some((path, place)) = path else { return };
        if let Some(first) = paths.get(&path) {
            let line = s.line_of(first);
            let message = format!("\"{}\" is the namespace on line {line} already", path.display());
            s.conflict(&[&place], message);
            return;
        }
        paths.insert(path.clone(), place);
        namespaces.push(NetNamespace { path, interfaces });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_and_exclude() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let cases = [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("eth*", "eth0.100", true),
            ("eth*", "veth0", false),
            ("*", "lo", true),
            ("* !lo", "lo", false),
            ("!lo *", "lo", false),
            ("!lo *", "eth0", true),
            ("!lo", "eth0", false),
            ("eth? wlan0", "eth1", true),
            ("eth? wlan0", "eth10", false),
            ("eth? wlan0", "eth", false),
            ("*e*h*0", "eth1-h0", true),
            ("*a*a*a*a*a*a*ab", "aaaaaaaaaaaaaaa", false),
            ("br-*", "br-…", true),
        ];
        for (entries, name, expected) in cases {
            assert_eq!(selects(&list(entries), name), expected, "{entries} and {name}");
        }
        assert!(!selects(&[], "eth0"));
        assert!(is_pattern("eth*") && is_pattern("eth?") && is_pattern("!eth0"));
        assert!(!is_pattern("eth0"));
    }
}
