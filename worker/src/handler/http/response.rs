//! What a response means for its message: pure.

use std::time::Duration;

use hyper::{StatusCode, header::HeaderValue};

use crate::handler::Outcome;

/// The request itself is wrong, whoever sends it again: these are about the message.
const HOPELESS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
];
const BUSY: [StatusCode; 2] = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];

/// `Retry-After` counts in seconds; a date is ignored.
pub(super) fn judge(status: StatusCode, retry_after: Option<&HeaderValue>, reason: String) -> Outcome {
    if status.is_success() {
        Outcome::Done
    } else if HOPELESS.contains(&status) {
        Outcome::DeadLetter { reason }
    } else {
        let seconds = retry_after.filter(|_| BUSY.contains(&status)).and_then(|value| value.to_str().ok());
        let after = seconds.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        Outcome::Retry { reason, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, retry_after: Option<&'static str>) -> Outcome {
        let retry_after = retry_after.map(HeaderValue::from_static);
        judge(StatusCode::from_u16(status).unwrap(), retry_after.as_ref(), "why".to_owned())
    }

    #[test]
    fn a_status_means_what_the_help_says() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judged(status, None), Outcome::Done, "{status}");
        }
        for status in [400, 413, 415, 422] {
            assert_eq!(judged(status, None), Outcome::DeadLetter { reason: "why".to_owned() }, "{status}");
        }
        for status in [301, 304, 401, 403, 404, 408, 409, 418, 429, 500, 502, 503, 504, 599, 999] {
            assert_eq!(judged(status, None), Outcome::retry("why"), "{status}");
        }
    }

    #[test]
    fn a_busy_server_says_when_to_come_again() {
        let after =
            |seconds| Outcome::Retry { reason: "why".to_owned(), after: Some(Duration::from_secs(seconds)) };
        assert_eq!(judged(503, Some("30")), after(30));
        assert_eq!(judged(429, Some(" 0 ")), after(0));
        assert_eq!(judged(500, Some("30")), Outcome::retry("why"));
        for odd in ["Wed, 21 Oct 2015 07:28:00 GMT", "-1", "1.5", "99999999999999999999", ""] {
            assert_eq!(judged(503, Some(odd)), Outcome::retry("why"), "{odd}");
        }
    }
}
