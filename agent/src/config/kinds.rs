//! The kinds of values that a key can have: what is allowed, how it is read, how it is written.

use std::fmt::Display;
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeValue;

/// One kind of value.
pub(super) trait Kind {
    type Value;

    /// What is allowed, as it follows "must be".
    fn allowed(&self) -> String;

    /// The value, or a sentence on what is wrong that follows the key's name.
    fn read(&self, value: &DeValue<'_>) -> Result<Self::Value, String>;

    /// The value in TOML, different for different values.
    fn render(&self, value: &Self::Value) -> String;

    /// Whether a list that names a value twice is wrong, rather than odd.
    fn repetition_is_wrong(&self) -> bool {
        true
    }
}

/// Longest piece of a wrong value that a message repeats, in characters.
const QUOTED: usize = 60;

/// `text` as it can stand in a message: escaped, and cut when long.
pub(super) fn quote(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED).collect();
    let rest = if cut.len() < text.len() { "…" } else { "" };
    format!("\"{}{rest}\"", cut.escape_debug())
}

/// What a value is, for a message.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn wrong(value: &DeValue<'_>, kind: &impl Kind) -> String {
    format!("is {}, but must be {}", describe(value), kind.allowed())
}

/// `true` or `false`.
pub(super) struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn read(&self, value: &DeValue<'_>) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| wrong(value, self))
    }

    fn render(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// A whole number, both ends included.
pub(super) struct Integer<T> {
    pub(super) min: T,
    pub(super) max: T,
}

impl<T: Copy + Display + PartialOrd + TryFrom<i128>> Kind for Integer<T> {
    type Value = T;

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        integer(value)
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| (self.min..=self.max).contains(number))
            .ok_or_else(|| wrong(value, self))
    }

    fn render(&self, value: &T) -> String {
        value.to_string()
    }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A number, both ends included.
pub(super) struct Number {
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Kind for Number {
    type Value = f64;

    fn allowed(&self) -> String {
        format!("a number from {:?} to {:?}", self.min, self.max)
    }

    fn read(&self, value: &DeValue<'_>) -> Result<f64, String> {
        let number = match value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        // No range contains NaN, so that it is refused here too.
        number
            .filter(|number: &f64| (self.min..=self.max).contains(number))
            .ok_or_else(|| wrong(value, self))
    }

    fn render(&self, value: &f64) -> String {
        format!("{value:?}")
    }
}

/// A length of time with its unit, both ends included.
pub(super) struct Span {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Kind for Span {
    type Value = Duration;

    fn allowed(&self) -> String {
        let (min, max) = (duration(self.min), duration(self.max));
        format!("a duration from \"{min}\" to \"{max}\"")
    }

    fn read(&self, value: &DeValue<'_>) -> Result<Duration, String> {
        let text = match value {
            DeValue::String(text) => text,
            DeValue::Integer(_) | DeValue::Float(_) => {
                let number = describe(value);
                return Err(format!("is {number} without a unit: write \"{number}s\" for seconds"));
            }
            _ => return Err(wrong(value, self)),
        };
        // humantime takes `M` for months, which nobody means in "10M".
        let parsed = if text.contains('M') { None } else { humantime::parse_duration(text).ok() };
        let Some(parsed) = parsed else {
            return Err(format!("{}; units are ms, s, m, h and d", wrong(value, self)));
        };
        if (self.min..=self.max).contains(&parsed) { Ok(parsed) } else { Err(wrong(value, self)) }
    }

    fn render(&self, value: &Duration) -> String {
        format!("\"{}\"", duration(*value))
    }
}

/// A duration in the largest unit that divides it.
pub(super) fn duration(value: Duration) -> String {
    const UNITS: [(u128, &str); 4] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let ms = value.as_millis();
    let unit = UNITS.into_iter().find(|(unit, _)| ms.checked_rem(*unit) == Some(0));
    match unit {
        _ if ms == 0 => "0s".to_owned(),
        Some((unit, name)) => format!("{}{name}", ms.checked_div(unit).unwrap_or_default()),
        None => format!("{ms}ms"),
    }
}

/// A number of bytes, plain or with a unit, both ends included.
pub(super) struct Bytes<T> {
    pub(super) min: T,
    pub(super) max: T,
    pub(super) power_of_two: bool,
}

impl<T: Copy + PartialOrd + TryFrom<u64>> Kind for Bytes<T>
where
    u64: TryFrom<T>,
{
    type Value = T;

    fn allowed(&self) -> String {
        let power = if self.power_of_two { ", a power of two" } else { "" };
        format!(
            "a number of bytes or a string with a unit, from {} to {}{power}",
            self.render(&self.min),
            self.render(&self.max)
        )
    }

    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        let bytes = match value {
            DeValue::String(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            _ => integer(value).and_then(|number| number.try_into().ok()),
        };
        bytes
            .filter(|bytes| !self.power_of_two || bytes.is_power_of_two())
            .and_then(|bytes| T::try_from(bytes).ok())
            .filter(|bytes| (self.min..=self.max).contains(bytes))
            .ok_or_else(|| wrong(value, self))
    }

    fn render(&self, value: &T) -> String {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let bytes = u64::try_from(*value).unwrap_or(u64::MAX);
        let unit = UNITS.into_iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => {
                format!("\"{}{name}\"", bytes.checked_div(unit).unwrap_or_default())
            }
            None => bytes.to_string(),
        }
    }
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn allowed(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.concat(),
        }
    }

    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        let word = value.as_str();
        let found = self.0.iter().find(|(name, _)| Some(*name) == word);
        found.map(|(_, choice)| *choice).ok_or_else(|| wrong(value, self))
    }

    fn render(&self, value: &T) -> String {
        let word = self.0.iter().find(|(_, choice)| choice == value).map(|(word, _)| *word);
        format!("\"{}\"", word.unwrap_or_default())
    }
}

/// A string with a form of its own.
pub(super) struct Word<T> {
    pub(super) allowed: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
    /// More about a string that `parse` refused.
    pub(super) hint: fn(&str) -> Option<String>,
    pub(super) render: fn(&T) -> String,
    pub(super) repetition_is_wrong: bool,
}

impl<T> Kind for Word<T> {
    type Value = T;

    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }

    fn read(&self, value: &DeValue<'_>) -> Result<T, String> {
        value.as_str().and_then(self.parse).ok_or_else(|| {
            let hint = value.as_str().and_then(self.hint);
            let hint = hint.map(|hint| format!(": {hint}")).unwrap_or_default();
            format!("{}{hint}", wrong(value, self))
        })
    }

    fn render(&self, value: &T) -> String {
        toml::Value::from((self.render)(value)).to_string()
    }

    fn repetition_is_wrong(&self) -> bool {
        self.repetition_is_wrong
    }
}

/// A value that the empty string switches off.
pub(super) struct OrEmpty<K>(pub(super) K);

impl<K: Kind> Kind for OrEmpty<K> {
    type Value = Option<K::Value>;

    fn allowed(&self) -> String {
        format!("{}, or \"\" for none", self.0.allowed())
    }

    fn read(&self, value: &DeValue<'_>) -> Result<Self::Value, String> {
        match value.as_str() {
            Some("") => Ok(None),
            _ => match self.0.read(value) {
                Ok(read) => Ok(Some(read)),
                Err(message) => Err(format!("{message}, or \"\" for none")),
            },
        }
    }

    fn render(&self, value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| "\"\"".to_owned(), |value| self.0.render(value))
    }
}

/// A value without a default: to leave the key out is a choice of its own.
pub(super) struct OrAbsent<K>(pub(super) K);

impl<K: Kind> Kind for OrAbsent<K> {
    type Value = Option<K::Value>;

    fn allowed(&self) -> String {
        self.0.allowed()
    }

    fn read(&self, value: &DeValue<'_>) -> Result<Self::Value, String> {
        self.0.read(value).map(Some)
    }

    fn render(&self, value: &Self::Value) -> String {
        value.as_ref().map_or_else(String::new, |value| self.0.render(value))
    }
}
