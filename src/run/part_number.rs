//! The number of a part, and of how many.

use std::fmt;
use std::str::FromStr;

/// The most parts that a plan is cut into.
pub const MAX_PARTS: usize = 100_000;

/// Which part of a plan is meant: its number, from 1, and how many parts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Its number, from 1.
    pub number: usize,
    /// How many parts there are.
    pub count: usize,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(number, count)| Some((whole(number)?, whole(count)?)));
        match numbers {
            Some((number, count)) if (1..=count).contains(&number) && count <= MAX_PARTS => {
                Ok(Self { number, count })
            }
            _ => Err(format!(
                "expected a part and how many there are, such as 3/16, of at most {MAX_PARTS}"
            )),
        }
    }
}

/// A number in plain digits.
fn whole(text: &str) -> Option<usize> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl Part {
    /// The name of the folder of the part.
    pub fn folder_name(self) -> String {
        format!("{}-of-{}", self.number, self.count)
    }

    /// The part whose folder has this name.
    pub fn of_folder(name: &str) -> Option<Self> {
        let (number, count) = name.split_once("-of-")?;
        let part = format!("{number}/{count}").parse().ok()?;
        (Self::folder_name(part) == name).then_some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_number_of_a_count() {
        let part = |text: &str| text.parse::<Part>();
        assert_eq!(part("3/16").unwrap().to_string(), "3/16");
        for wrong in [
            "0/4", "5/4", "1", "/", "1/", "+1/4", "1/100001", "1/0", "a/b", "1/4/4",
        ] {
            assert!(part(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_part_has_a_folder() {
        let part: Part = "3/16".parse().unwrap();
        assert_eq!(part.folder_name(), "3-of-16");
        assert_eq!(Part::of_folder("3-of-16"), Some(part));
        for other in ["3-of-2", "03-of-16", "3-of-16.weld-staging", "x", "3/16"] {
            assert_eq!(Part::of_folder(other), None, "{other}");
        }
    }
}
