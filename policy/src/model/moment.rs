use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment in whole seconds since 1970, UTC. Its `Display` is RFC 3339, as is what it is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(u64);

/// A text that is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a moment: expected date, time in whole seconds and zone, such as 2026-12-31T23:59:59Z")]
pub struct MomentError(String);

impl Moment {
    /// Before every other: nothing has expired yet.
    pub const START: Self = Self(0);

    /// The last that can be written, the end of the year 9999.
    const LAST: u64 = 253_402_300_799;

    /// A moment by its seconds since 1970; what lies beyond the year 9999 is its end.
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(Self::LAST))
    }

    /// Seconds since 1970.
    pub fn unix(self) -> u64 {
        self.0
    }
}

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        let bad = || MomentError(text.to_owned());
        let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| bad())?;
        let seconds = u64::try_from(moment.unix_timestamp()).map_err(|_| bad())?;
        if moment.nanosecond() != 0 || seconds > Self::LAST {
            return Err(bad());
        }
        Ok(Self(seconds))
    }
}

impl TryFrom<String> for Moment {
    type Error = MomentError;

    fn try_from(text: String) -> Result<Self, MomentError> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let moment = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| fmt::Error)?;
        f.write_str(&moment.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_one_moment_and_what_is_printed_reads_back() {
        let moment: Moment = "2026-12-31T23:59:59Z".parse().unwrap();
        assert_eq!(moment.unix(), 1_798_761_599);
        assert_eq!("2027-01-01T01:59:59+02:00".parse(), Ok(moment));
        assert_eq!(moment.to_string(), "2026-12-31T23:59:59Z");
        assert_eq!(Moment::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Moment::START.to_string().parse(), Ok(Moment::START));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-12-31",
            "2026-12-31T23:59:59",
            "2026-02-30T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-12-31T23:59:59.5Z",
        ] {
            assert!(text.parse::<Moment>().is_err(), "{text:?}");
        }
    }
}
