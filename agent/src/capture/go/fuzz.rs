//! What the fuzzer and the replay of its seeds run: a function table of any bytes, and the code of
//! a function. The first two bytes are the length of the table; the rest is code.

use super::code::Function;
use super::pclntab::Table;

/// Names that are looked for, the last of which is nowhere.
const WANTED: [&str; 3] = ["crypto/tls.(*Conn).Read", "a", "no.such.function"];

pub fn go(input: &[u8]) {
    let Some((&[low, high], rest)) = input.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
    let (table, code) = rest.split_at(length);
    functions(table);
    instructions(code);
}

fn functions(bytes: &[u8]) {
    let Ok(table) = Table::parse(bytes) else { return };
    let _ = table.extent();
    let Ok(found) = table.find(WANTED) else { return };
    assert!(found.iter().flatten().all(|range| range.start < range.end), "{found:?}");
}

fn instructions(code: &[u8]) {
    const START: u64 = 0x40_1000;
    let Ok(function) = Function::decode(code, START) else { return };
    let inside = START..START + code.len() as u64;
    if let Ok(entry) = function.entry() {
        assert!(inside.contains(&entry.at), "{entry:?}");
    }
    for at in function.returns().unwrap_or_default() {
        let instruction = &code[usize::try_from(at - START).expect("short")..];
        // `ret`, with or without prefixes and operand.
        let opcode = instruction.iter().find(|byte| matches!(byte, 0xc2 | 0xc3 | 0xca | 0xcb));
        assert!(opcode.is_some() && inside.contains(&at), "{at:#x}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::go;

    /// The fuzzer's seeds, and inputs that once made it fail.
    fn seeds() -> Vec<Vec<u8>> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
        let mut seeds = Vec::new();
        for folder in ["seeds/go", "regressions/go"] {
            // There are no regressions at first.
            let Ok(entries) = std::fs::read_dir(fuzz.join(folder)) else { continue };
            seeds.extend(entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()));
        }
        assert!(seeds.len() >= 3, "{} inputs", seeds.len());
        seeds
    }

    #[test]
    fn seeds_and_regressions_hold() {
        seeds().iter().for_each(|seed| go(seed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn damaged_seeds_hold(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            code in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let seeds = seeds();
            let mut input = which.get(&seeds).clone();
            for (at, value) in changes {
                let at = at.index(input.len());
                input[at] = value;
            }
            go(&[input, code].concat());
        }
    }
}
