//! The one place that reads the clock: time stamps for rows.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now in UTC as `2026-11-24T06:40:00Z`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let second = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// A run's id: when it began, and enough of the nanoseconds and the process that two never meet.
pub fn run_id() -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    let stamp: String = now().chars().filter(char::is_ascii_digit).take(14).collect();
    let tail = gym::Seed(nanos).derive(u64::from(std::process::id())).0 % (36 * 36 * 36 * 36);
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let tail: String = (0..4)
        .map(|i| char::from(digits[(tail / 36u64.pow(i) % 36) as usize]))
        .collect();
    format!("{}-{}-{tail}", &stamp[..8], &stamp[8..])
}

/// Year, month and day of a day number since 1970-01-01 (Howard Hinnant, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_781), (2026, 11, 24));
    }
}
