//! Numbers and dates, as findings spell them.

use std::cmp::Ordering;

/// A number of some unit, or a date.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    before: String,
    /// The number without its fraction, or the date's year.
    pub value: u64,
    /// What orders equal values: the fraction, or the part of the year; 0 to below 1.
    rest: f64,
    after: String,
    pub is_year: bool,
}

impl Quantity {
    /// "1,240,192 sq km", "442.6 sq km", "1953", "19 November 1965", "May 20, 1892"; not "1939-1945".
    pub fn parse(text: &str) -> Option<Quantity> {
        date(text).or_else(|| number(text))
    }

    /// The same with another value: unit, day and month stay, a fraction is left off.
    pub fn with(&self, value: u64) -> String {
        let value = if self.is_year {
            value.to_string()
        } else {
            grouped(value)
        };
        format!("{}{value}{}", self.before, self.after)
    }

    /// Whether an order of both means something: two dates, or two numbers of one unit.
    pub fn compares(&self, other: &Quantity) -> bool {
        self.is_year == other.is_year && (self.is_year || self.after == other.after)
    }

    pub fn has_unit(&self) -> bool {
        !self.after.is_empty()
    }

    /// Least first; of quantities that compare.
    pub fn order(&self, other: &Quantity) -> Ordering {
        self.value.cmp(&other.value).then(self.rest.total_cmp(&other.rest))
    }
}

/// A year, alone or with a day and a month.
fn date(text: &str) -> Option<Quantity> {
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let (mut year, mut month, mut day) = (None, None, None);
    for word in words {
        let part = match word.parse::<u16>() {
            Ok(number) if word.len() == 4 && (1000..=2100).contains(&number) => year.replace((word, number)).map(drop),
            Ok(number) if word.len() <= 2 && (1..=31).contains(&number) => day.replace(number).map(drop),
            _ => month.replace(MONTHS.iter().position(|month| *month == word)?).map(drop),
        };
        if part.is_some() {
            return None;
        }
    }
    let (word, year) = year?;
    let (before, after) = text.split_once(word)?;
    let days = 31 * month.unwrap_or(0) + usize::from(day.unwrap_or(1)) - 1;
    Some(Quantity {
        before: before.to_owned(),
        value: year.into(),
        rest: days as f64 / 372.0,
        after: after.to_owned(),
        is_year: true,
    })
}

/// Digits, in groups of three or not, perhaps a fraction, then a unit without digits.
fn number(text: &str) -> Option<Quantity> {
    let is_digit = |c: char| c.is_ascii_digit();
    let end = text.find(|c: char| !is_digit(c) && c != ',').unwrap_or(text.len());
    let (whole, after) = text.split_at(end);
    let plain: String = whole.chars().filter(char::is_ascii_digit).collect();
    let value: u64 = plain.parse().ok()?;
    let fraction = after.strip_prefix('.').filter(|rest| rest.starts_with(is_digit));
    let (rest, after) = match fraction {
        Some(digits) => {
            let end = digits.find(|c: char| !is_digit(c)).unwrap_or(digits.len());
            (format!("0.{}", &digits[..end]).parse().ok()?, &digits[end..])
        }
        None => (0.0, after),
    };
    let valid = (whole == plain || whole == grouped(value)) && !after.contains(is_digit);
    valid.then(|| Quantity {
        before: String::new(),
        value,
        rest,
        after: after.to_owned(),
        is_year: false,
    })
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// With a comma after each three digits.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_numbers_and_dates() {
        for text in [
            "79,375,136",
            "2 sq km",
            "1953",
            "19 November 1965",
            "May 20, 1892",
            "1,240,192 sq km",
            "0",
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(quantity.with(quantity.value), text);
        }
        let fraction = Quantity::parse("442.6 sq km").unwrap();
        assert_eq!(fraction.with(12_345), "12,345 sq km");
        for text in [
            "",
            "Mali",
            "1939-1945",
            "3 of 4",
            "about 30",
            "12,34",
            "1,240 (2015)",
            "May",
            "7 May 8 1953",
            "99999999999999999999999",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn fractions_days_and_months_order_what_is_else_equal() {
        for (less, more) in [
            ("442.16 sq km", "442.6 sq km"),
            ("999", "1,000"),
            ("March 9, 1965", "10 March 1965"),
            ("31 January 1965", "1 February 1965"),
            ("1964", "1965"),
        ] {
            let [less, more] = [less, more].map(|text| Quantity::parse(text).unwrap());
            assert!(less.compares(&more));
            assert_eq!(less.order(&more), Ordering::Less);
            assert_eq!(more.order(&less), Ordering::Greater);
        }
        let [km, people, year] = ["7 km", "7", "1007"].map(|text| Quantity::parse(text).unwrap());
        assert!(!km.compares(&people) && !people.compares(&year));
    }
}
