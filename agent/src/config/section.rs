//! Reads tables of the configuration key by key. Each key is declared once, by the call that
//! reads it: the same calls without a file list the keys.

use std::collections::HashMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::damage::Damage;
use super::kinds::{Kind, describe, quote};
use super::problem::{Problem, Source};
use super::reference::{self, KeyDoc};

/// What is written about a key, beside its kind and its default.
pub(super) struct Key {
    /// Dotted, from the top of the file.
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) restart: bool,
}

/// A key whose change a reload carries out.
pub(super) const fn key(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, restart: false }
}

/// A key whose change waits for the next start.
pub(super) const fn fixed(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, restart: true }
}

/// What came of a key.
#[derive(Clone, Debug)]
pub(super) struct Place {
    key: String,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
enum Outcome {
    /// Not in the file: the default holds.
    Default,
    /// Reported as wrong: the default holds, and no conclusion may be drawn from it.
    Wrong,
    /// Read from these bytes of the file.
    Read(Range<usize>),
}

/// What came of a list.
#[derive(Debug)]
pub(super) struct ListPlace {
    pub(super) list: Place,
    /// Where each value of the list stands; empty when the default holds.
    pub(super) entries: Vec<Place>,
}

/// What reading finds, beside the values.
pub(super) struct Findings<'a> {
    source: &'a Source<'a>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// The keys, when they are asked for instead of a file being read.
    docs: Option<Vec<KeyDoc>>,
    damage: &'a Damage,
}

impl<'a> Findings<'a> {
    pub(super) fn of_file(source: &'a Source<'a>, damage: &'a Damage) -> Self {
        Self { source, problems: Vec::new(), warnings: Vec::new(), docs: None, damage }
    }

    pub(super) fn of_declarations(source: &'a Source<'a>, damage: &'a Damage) -> Self {
        Self { docs: Some(Vec::new()), ..Self::of_file(source, damage) }
    }

    pub(super) fn into_docs(self) -> Vec<KeyDoc> {
        self.docs.unwrap_or_default()
    }

    /// Reads the top of the file. `None` lists the keys.
    pub(super) fn top(
        &mut self,
        table: Option<&'a DeTable<'a>>,
        body: impl FnOnce(&mut Section<'_, 'a>),
    ) {
        let content = table.map_or(Content::Nothing, Content::Table);
        Section::read(self, content, String::new(), 0..0, body);
    }
}

/// Where a section's values come from.
#[derive(Clone, Copy)]
enum Content<'d> {
    Nothing,
    Table(&'d DeTable<'d>),
    /// A string that stands for a table with this one key.
    Short(&'static str, &'d Spanned<DeValue<'d>>),
}

/// One table of the file.
pub(super) struct Section<'r, 'd> {
    findings: &'r mut Findings<'d>,
    content: Content<'d>,
    /// Dotted path of the table, empty at the top.
    path: String,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'r, 'd> Section<'r, 'd> {
    fn read(
        findings: &'r mut Findings<'d>,
        content: Content<'d>,
        path: String,
        span: Range<usize>,
        body: impl FnOnce(&mut Section<'_, 'd>),
    ) {
        let mut section = Section { findings, content, path, span, known: Vec::new() };
        body(&mut section);
        section.refuse_unknown_keys();
    }

    /// Reads a single value into `target`, which holds the default.
    pub(super) fn value<K: Kind>(&mut self, key: Key, kind: &K, target: &mut K::Value) -> Place {
        self.document(&key, kind.allowed(), kind.render(target));
        let place = self.place(key.name);
        let Some(value) = self.find(key.name) else { return place };
        match kind.read(value.get_ref()) {
            Ok(read) => {
                *target = read;
                place.read(value.span())
            }
            Err(message) => self.wrong(place, value.span(), message),
        }
    }

    /// Reads a value that must be there.
    pub(super) fn required<K: Kind>(&mut self, key: Key, kind: &K) -> Option<(K::Value, Place)> {
        self.document(&key, kind.allowed(), String::new());
        let place = self.place(key.name);
        let Some(value) = self.find(key.name) else {
            self.missing(&place, format!("is missing: must be {}", kind.allowed()));
            return None;
        };
        match kind.read(value.get_ref()) {
            Ok(read) => Some((read, place.read(value.span()))),
            Err(message) => {
                self.wrong(place, value.span(), message);
                None
            }
        }
    }

    /// Reads a list into `target`, which holds the default. Wrong entries are left out.
    pub(super) fn list<K: Kind>(
        &mut self,
        key: Key,
        kind: &K,
        target: &mut Vec<K::Value>,
    ) -> ListPlace {
        let default: Vec<String> = target.iter().map(|value| kind.render(value)).collect();
        let allowed = format!("a list, each entry {}", kind.allowed());
        self.document(&key, allowed.clone(), format!("[{}]", default.join(", ")));
        let list = self.place(key.name);
        let Some(value) = self.find(key.name) else { return ListPlace { list, entries: vec![] } };
        let Some(array) = value.get_ref().as_array() else {
            let written = describe(value.get_ref());
            let hint = match kind.read(value.get_ref()) {
                Ok(_) => format!(": write [{written}]"),
                Err(_) => String::new(),
            };
            let message = format!("is {written}, but must be {allowed}{hint}");
            return ListPlace { list: self.wrong(list, value.span(), message), entries: vec![] };
        };
        target.clear();
        let problems_before = self.findings.problems.len();
        let entries = self.entries_of_list(&list.key, array, kind, target);
        let list = if self.findings.problems.len() == problems_before {
            list.read(value.span())
        } else {
            list.wrong()
        };
        ListPlace { list, entries }
    }

    fn entries_of_list<K: Kind>(
        &mut self,
        path: &str,
        array: &DeArray<'_>,
        kind: &K,
        target: &mut Vec<K::Value>,
    ) -> Vec<Place> {
        let mut entries = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (index, entry) in array.iter().enumerate() {
            let place = Place { key: format!("{path}[{index}]"), outcome: Outcome::Default };
            let read = match kind.read(entry.get_ref()) {
                Ok(read) => read,
                Err(message) => {
                    self.wrong(place, entry.span(), message);
                    continue;
                }
            };
            let rendered = kind.render(&read);
            let place = place.read(entry.span());
            if let Some(first) = seen.insert(rendered.clone(), entry.span().start) {
                let line = self.findings.source.line(first);
                let message = format!("{rendered} is listed twice, first on line {line}");
                if kind.repetition_is_wrong() {
                    self.wrong(place, entry.span(), message);
                    continue;
                }
                self.warn(&place, message);
            }
            entries.push(place);
            target.push(read);
        }
        entries
    }

    /// Reads a table inside this one.
    pub(super) fn table(&mut self, name: &'static str, body: impl FnOnce(&mut Section<'_, 'd>)) {
        let place = self.place(name);
        let (content, span) = match self.find(name) {
            None => (Content::Nothing, self.span.clone()),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => (Content::Table(table), value.span()),
                other => {
                    let message =
                        format!("is {}, but must be a table: write [{name}]", describe(other));
                    self.wrong(place, value.span(), message);
                    return;
                }
            },
        };
        Section::read(self.findings, content, place.key, span, body);
    }

    /// Reads a list of tables. With `short`, a string is a table with that one key.
    pub(super) fn tables(
        &mut self,
        name: &'static str,
        short: Option<&'static str>,
        mut body: impl FnMut(&mut Section<'_, 'd>),
    ) -> Place {
        let place = self.place(name);
        if self.findings.docs.is_some() {
            Section::read(self.findings, Content::Nothing, place.key.clone(), 0..0, body);
            return place;
        }
        let Some(value) = self.find(name) else { return place };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!(
                "is {}, but must be a list of tables: write [[{name}]]",
                describe(value.get_ref())
            );
            return self.wrong(place, value.span(), message);
        };
        for (index, entry) in array.iter().enumerate() {
            let path = format!("{}[{index}]", place.key);
            let content = match (entry.get_ref(), short) {
                (DeValue::Table(table), _) => Content::Table(table),
                (DeValue::String(_), Some(key)) => Content::Short(key, entry),
                (other, _) => {
                    let allowed = if short.is_some() { "a string or a table" } else { "a table" };
                    let message = format!("is {}, but must be {allowed}", describe(other));
                    self.wrong(Place { key: path, outcome: Outcome::Wrong }, entry.span(), message);
                    continue;
                }
            };
            Section::read(self.findings, content, path, entry.span(), &mut body);
        }
        place.read(value.span())
    }

    /// Reports that these keys, each right by itself, do not fit together. Says nothing when one
    /// of them was reported already.
    pub(super) fn conflict(&mut self, places: &[&Place], message: String) {
        let sound = places.iter().all(|place| match place.outcome {
            Outcome::Read(_) => true,
            Outcome::Default => self.findings.damage.absent_is_certain(&place.key),
            Outcome::Wrong => false,
        });
        let written = places.iter().find_map(|place| Some((place, place.span()?)));
        if let (true, Some((place, span))) = (sound, written) {
            let problem = self.findings.source.problem(span.start, &place.key, message);
            self.findings.problems.push(problem);
        }
    }

    /// Reports that something that must be there is not.
    pub(super) fn missing(&mut self, place: &Place, message: String) {
        let reported = matches!(place.outcome, Outcome::Wrong);
        let hidden = !self.findings.damage.absent_is_certain(&place.key);
        if reported || hidden || self.findings.docs.is_some() {
            return;
        }
        let start = place.span().unwrap_or(&self.span).start;
        self.findings.problems.push(self.findings.source.problem(start, &place.key, message));
    }

    /// Reports something odd about a key that is in the file.
    pub(super) fn warn(&mut self, place: &Place, message: String) {
        if let Some(span) = place.span() {
            let problem = self.findings.source.problem(span.start, &place.key, message);
            self.findings.warnings.push(problem);
        }
    }

    /// This table itself, as the place of a mistake.
    pub(super) fn own_place(&self) -> Place {
        let outcome = match self.content {
            Content::Nothing => Outcome::Default,
            Content::Table(_) | Content::Short(..) => Outcome::Read(self.span.clone()),
        };
        Place { key: self.path.clone(), outcome }
    }

    /// The line on which `place` stands in the file.
    pub(super) fn line_of(&self, place: &Place) -> usize {
        place.span().map_or(0, |span| self.findings.source.line(span.start))
    }

    fn wrong(&mut self, place: Place, span: Range<usize>, message: String) -> Place {
        let problem = self.findings.source.problem(span.start, &place.key, message);
        self.findings.problems.push(problem);
        place.wrong()
    }

    /// The value of a key, which from now on is known.
    fn find(&mut self, name: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        let last = last_segment(name);
        self.known.push(last);
        match self.content {
            Content::Table(table) => table.get(last),
            Content::Short(key, value) if key == last => Some(value),
            Content::Nothing | Content::Short(..) => None,
        }
    }

    fn place(&self, name: &'static str) -> Place {
        let last = last_segment(name);
        let key = match (self.path.as_str(), self.content) {
            ("", _) => last.to_owned(),
            (path, Content::Short(key, _)) if key == last => path.to_owned(),
            (path, _) => format!("{path}.{last}"),
        };
        Place { key, outcome: Outcome::Default }
    }

    fn document(&mut self, key: &Key, allowed: String, default: String) {
        if let Some(docs) = &mut self.findings.docs {
            let Key { name, doc, restart } = *key;
            docs.push(KeyDoc { key: name, allowed, default, doc, restart });
        }
    }

    fn refuse_unknown_keys(&mut self) {
        let Content::Table(table) = self.content else { return };
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let message = format!("unknown key; {}", self.suggestion(name));
            let path = match self.path.as_str() {
                "" => shown_key(name),
                path => format!("{path}.{}", shown_key(name)),
            };
            let problem = self.findings.source.problem(key.span().start, &path, message);
            self.findings.problems.push(problem);
        }
    }

    /// What the writer of an unknown key may have meant.
    fn suggestion(&self, name: &str) -> String {
        if let Some(near) = nearest(name, self.known.iter().copied()) {
            return format!("did you mean `{near}`?");
        }
        let elsewhere = reference::reference()
            .into_iter()
            .find(|doc| last_segment(doc.key) == name)
            .map(|doc| doc.key);
        match elsewhere {
            Some(key) if key == name => {
                format!("`{key}` belongs at the top of the file, before the first [table]")
            }
            Some(key) => format!("did you mean `{key}`?"),
            None => format!("known here: {}", self.known.join(", ")),
        }
    }
}

impl Place {
    /// Whether it was reported already.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.outcome, Outcome::Wrong)
    }

    fn read(self, span: Range<usize>) -> Self {
        Self { outcome: Outcome::Read(span), ..self }
    }

    fn wrong(self) -> Self {
        Self { outcome: Outcome::Wrong, ..self }
    }

    fn span(&self) -> Option<&Range<usize>> {
        match &self.outcome {
            Outcome::Read(span) => Some(span),
            Outcome::Default | Outcome::Wrong => None,
        }
    }
}

fn last_segment(name: &'static str) -> &'static str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// A key as it would have to be written.
fn shown_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { quote(name) }
}

/// Longest key that is compared with the known ones, in bytes.
const LONGEST_SLIP: usize = 64;

/// The name that `wrong` may be a slip of: at most a third of its letters away.
fn nearest(wrong: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    if wrong.len() > LONGEST_SLIP {
        return None;
    }
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    let budget = wrong.chars().count().div_ceil(3);
    names
        .map(|name| (strsim::damerau_levenshtein(&wrong, name), name))
        .filter(|(distance, _)| *distance <= budget)
        .min()
        .map(|(_, name)| name)
}
