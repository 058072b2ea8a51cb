//! Values by name, in little memory: all names are in one text, and their entries in one sorted vector.
//!
//! A header or an index may have millions of names. Maps of strings would take several times the memory of the file, in
//! pieces so small that a failed allocation would end the process.

use std::io;

use crate::memory::{reserve, reserve_text};

/// Values by name.
#[derive(Debug)]
pub(super) struct NameTable<V> {
    names: String,
    entries: Vec<Entry<V>>,
}

#[derive(Debug)]
struct Entry<V> {
    /// Where the name begins in `names`.
    start: usize,
    length: u32,
    value: V,
}

/// The longest name, in bytes. The longest known one has about 200.
pub(super) const LONGEST_NAME: usize = 4096;

impl<V> Default for NameTable<V> {
    fn default() -> Self {
        Self { names: String::new(), entries: Vec::new() }
    }
}

impl<V> NameTable<V> {
    /// Adds a name. The table has to be sorted before names are looked up.
    pub(super) fn push(&mut self, name: &str, value: V) -> io::Result<()> {
        if name.len() > LONGEST_NAME {
            let problem = format!("a name of a tensor has {} bytes, more than {LONGEST_NAME}", name.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        reserve_text(&mut self.names, name.len())?;
        reserve(&mut self.entries, 1)?;
        let start = self.names.len();
        self.names.push_str(name);
        self.entries.push(Entry { start, length: name.len() as u32, value });
        Ok(())
    }

    /// Sorts the names. Returns one that appears twice, if there is one.
    pub(super) fn sort(&mut self) -> Option<&str> {
        let Self { names, entries } = self;
        entries.sort_unstable_by(|one, other| name_in(names, one).cmp(name_in(names, other)));
        let twice = entries.windows(2).find(|pair| name_in(names, &pair[0]) == name_in(names, &pair[1]));
        twice.map(|pair| name_in(names, &pair[0]))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The names in order, with their values.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &V)> {
        self.entries.iter().map(|entry| (name_in(&self.names, entry), &entry.value))
    }

    /// The names in order, from this one on.
    pub(super) fn iter_from(&self, name: &str) -> impl Iterator<Item = (&str, &V)> {
        let first = self.entries.partition_point(|entry| name_in(&self.names, entry) < name);
        self.entries[first..].iter().map(|entry| (name_in(&self.names, entry), &entry.value))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|entry| &mut entry.value)
    }

    /// The name and the value at a place in the order.
    pub(super) fn at(&self, place: usize) -> (&str, &V) {
        let entry = &self.entries[place];
        (name_in(&self.names, entry), &entry.value)
    }

    /// The name, as the table has it, and its value.
    pub(super) fn get(&self, name: &str) -> Option<(&str, &V)> {
        self.find(name).map(|place| self.at(place))
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        self.find(name).map(|place| &mut self.entries[place].value)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.entries.binary_search_by(|entry| name_in(&self.names, entry).cmp(name)).ok()
    }
}

fn name_in<'n, V>(names: &'n str, entry: &Entry<V>) -> &'n str {
    &names[entry.start..entry.start + entry.length as usize]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_order() {
        let mut table = NameTable::default();
        for (place, name) in ["b", "", "é", "a.b", "a"].into_iter().enumerate() {
            table.push(name, place).unwrap();
        }
        assert_eq!(table.sort(), None);
        assert_eq!(table.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["", "a", "a.b", "b", "é"]);
        assert_eq!(table.iter_from("a.").map(|(name, _)| name).collect::<Vec<_>>(), ["a.b", "b", "é"]);
        assert_eq!((table.get("b"), table.get("c")), (Some(("b", &0)), None));
        *table.get_mut("é").unwrap() = 7;
        assert_eq!((table.at(4), table.len()), (("é", &7), 5));
        table.push("a", 9).unwrap();
        assert_eq!(table.sort(), Some("a"));
    }

    #[test]
    fn a_name_has_a_longest_length() {
        let mut table = NameTable::default();
        table.push(&"x".repeat(LONGEST_NAME), ()).unwrap();
        assert!(table.push(&"x".repeat(LONGEST_NAME + 1), ()).is_err());
    }
}
