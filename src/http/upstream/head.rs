//! The head of an engine's answer, as far as anybody reads it, and whether it can be an answer.

use actix_web::http::{StatusCode, header::HeaderValue};

use super::{Body, Fault, RetryHints, Unanswered, UpstreamResponse};

/// What is read of a head.
pub(super) struct Head {
    status: StatusCode,
    content_type: Option<String>,
    content_encoding: Option<String>,
    location: Option<String>,
    is_simulated: bool,
    retry: RetryHints,
}

impl Head {
    pub(super) fn new(status: StatusCode) -> Self {
        Self {
            status,
            content_type: None,
            content_encoding: None,
            location: None,
            is_simulated: false,
            retry: RetryHints::default(),
        }
    }

    /// Takes note of one field.
    pub(super) fn note(&mut self, name: &str, value: &[u8]) {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let text = || Some(String::from_utf8_lossy(value).into_owned());
        let kept = || HeaderValue::from_bytes(value).ok();
        if is("content-type") {
            self.content_type = text();
        } else if is("content-encoding") {
            self.content_encoding = text();
        } else if is("location") {
            self.location = text();
        } else if is("retry-after") {
            self.retry.retry_after = kept();
        } else if is("retry-after-ms") {
            self.retry.retry_after_ms = kept();
        } else if is("x-should-retry") {
            self.retry.should_retry = kept();
        } else if is("x-kvwarden-simulated") {
            self.is_simulated = true;
        }
    }

    /// The whole response.
    ///
    /// # Errors
    /// When it is no answer to what was asked.
    pub(super) fn response(self, body: Body) -> Result<UpstreamResponse, Unanswered> {
        if let Some(why) = self.flaw() {
            let fault = Fault::Unusable;
            return Err(Unanswered { fault, why });
        }
        Ok(UpstreamResponse {
            status: self.status,
            content_type: self.content_type,
            is_simulated: self.is_simulated,
            retry: self.retry,
            body,
        })
    }

    fn flaw(&self) -> Option<String> {
        let code = self.status.as_u16();
        match code {
            204 | 205 => return Some(format!("the engine answered {code}, without content")),
            300..400 => {
                let elsewhere = self.location.as_deref().unwrap_or("nowhere in particular");
                return Some(format!(
                    "the engine answered {code} and points to {elsewhere}; redirects are not followed"
                ));
            }
            200..300 | 400..600 => {}
            _ => return Some(format!("the engine answered with the status {code}")),
        }
        let coding = self.content_encoding.as_deref()?;
        (!coding.eq_ignore_ascii_case("identity"))
            .then(|| format!("the engine's answer is coded as {coding}, which nobody asked for"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaw(status: u16, fields: &[(&str, &str)]) -> Option<String> {
        let mut head = Head::new(StatusCode::from_u16(status).unwrap());
        for (name, value) in fields {
            head.note(name, value.as_bytes());
        }
        head.flaw()
    }

    #[test]
    fn what_is_no_answer_says_why() {
        for status in [101, 204, 205, 304, 600, 999] {
            let why = flaw(status, &[]).unwrap();
            assert!(why.contains(&status.to_string()), "{why}");
        }
        let why = flaw(307, &[("Location", "http://there/")]).unwrap();
        assert!(why.contains("http://there/"), "{why}");
        let why = flaw(200, &[("content-encoding", "gzip")]).unwrap();
        assert!(why.contains("gzip"), "{why}");
    }

    #[test]
    fn answers_and_errors_of_the_engine_are_answers() {
        for status in [200, 201, 400, 404, 429, 500, 599] {
            assert_eq!(flaw(status, &[("Content-Encoding", "Identity")]), None);
        }
    }
}
