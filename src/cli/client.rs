//! Asking a running kvwarden: where it is, with which key, and what its refusals mean.

use std::{io, time::Duration};

use actix_web::http::{Method, StatusCode, Uri, header};
use awc::error::{ConnectError, SendRequestError};
use bytes::Bytes;
use clap::Args;
use serde_json::Value;

/// It answers in milliseconds, or is stuck.
const DEADLINE: Duration = Duration::from_secs(5);

/// A status is about 500 bytes per model and tenant, and there may be thousands of tenants.
const MAX_BODY: usize = 32 << 20;

/// Where `kvwarden serve` listens unless it is told otherwise.
const DEFAULT_HOST: &str = "127.0.0.1";
const DEFAULT_PORT: u16 = 8000;

/// Which server to ask, and with which key.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Where kvwarden serves [default: http://127.0.0.1:8000]
    #[arg(long, global = true, value_name = "URL", conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// Its host, instead of the URL
    #[arg(long, global = true, value_name = "ADDRESS")]
    host: Option<String>,
    /// Its port, instead of the URL
    #[arg(long, global = true)]
    port: Option<u16>,
    /// An operator's key (one of auth.admin_keys), where the server asks for one
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "KVWARDEN_KEY",
        hide_env_values = true
    )]
    key: Option<String>,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is none.
    #[error("cannot use `{url}`: {reason} (write http://HOST:PORT)")]
    BadUrl {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody listens.
    #[error(
        "nothing listens at {url}; start it with `kvwarden serve --config FILE`, or say where it is with --url or --port"
    )]
    Refused {
        /// Where.
        url: String,
    },
    /// Somebody listens and does not answer.
    #[error(
        "{url} did not answer in {} s; is this kvwarden's port? Its log says what it is doing",
        DEADLINE.as_secs()
    )]
    Silent {
        /// Where.
        url: String,
    },
    /// It could not be reached for another reason.
    #[error("cannot ask {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// No key, and one is needed.
    #[error(
        "{url} asks for an operator's key: give one of auth.admin_keys with --key or KVWARDEN_KEY (`kvwarden key` makes one)"
    )]
    NoKey {
        /// Where.
        url: String,
    },
    /// A key of a tenant, or an old one.
    #[error(
        "{url} does not take this key here: it has to be one of auth.admin_keys, a tenant's will not do (--key or KVWARDEN_KEY)"
    )]
    WrongKey {
        /// Where.
        url: String,
    },
    /// Another answer than 200.
    #[error("{url} answered {status}: {message}")]
    Failed {
        /// Where.
        url: String,
        /// The status.
        status: StatusCode,
        /// What its body says.
        message: String,
    },
    /// It is something else that listens there.
    #[error("{url} does not answer like kvwarden {}: {reason}", env!("CARGO_PKG_VERSION"))]
    NotOurs {
        /// Where.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

// === impl Target ===

impl Target {
    /// A server at this address, without a key.
    pub(crate) fn at(address: std::net::SocketAddr) -> Self {
        Self {
            url: Some(format!("http://{address}")),
            host: None,
            port: None,
            key: None,
        }
    }

    /// The base URL, without a slash at its end.
    pub(crate) fn base(&self) -> String {
        if let Some(url) = &self.url {
            let url = url.trim().trim_end_matches('/');
            return if url.contains("://") {
                url.to_owned()
            } else {
                format!("http://{url}")
            };
        }
        let host = self.host.as_deref().unwrap_or(DEFAULT_HOST);
        let port = self.port.unwrap_or(DEFAULT_PORT);
        if host.contains(':') && !host.starts_with('[') {
            format!("http://[{host}]:{port}")
        } else {
            format!("http://{host}:{port}")
        }
    }

    /// The JSON at `path`. Blocks.
    ///
    /// # Errors
    /// Every other answer than a 200 with JSON, and none.
    pub(crate) fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        self.read(path, &self.get(path)?)
    }

    /// Asks for something to be done, by a `POST` without content. Blocks.
    ///
    /// # Errors
    /// Every other answer than a 202 with JSON, and none.
    pub(crate) fn post_json(&self, path: &str) -> Result<Value, ClientError> {
        self.read(path, &self.exchange(Method::POST, path)?)
    }

    fn read(&self, path: &str, answer: &Answer) -> Result<Value, ClientError> {
        let url = self.base();
        match answer.status {
            StatusCode::OK | StatusCode::ACCEPTED => {}
            StatusCode::UNAUTHORIZED if self.key.is_none() => {
                return Err(ClientError::NoKey { url });
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.key.is_some() => {
                return Err(ClientError::WrongKey { url });
            }
            StatusCode::NOT_FOUND if !is_about_a_model(&answer.body) => {
                let reason = format!("it has no {path}");
                return Err(ClientError::NotOurs { url, reason });
            }
            status => {
                let message = message_of(&answer.body);
                return Err(ClientError::Failed {
                    url,
                    status,
                    message,
                });
            }
        }
        serde_json::from_slice(&answer.body).map_err(|error| ClientError::NotOurs {
            url,
            reason: error.to_string(),
        })
    }

    /// The answer at `path`, whatever its status. Blocks.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.exchange(Method::GET, path)
    }

    fn exchange(&self, method: Method, path: &str) -> Result<Answer, ClientError> {
        let base = self.base();
        check(&base)?;
        actix_rt::System::new().block_on(async {
            actix_rt::time::timeout(DEADLINE, self.ask(method, &base, path))
                .await
                .unwrap_or_else(|_| Err(ClientError::Silent { url: base.clone() }))
        })
    }

    async fn ask(&self, method: Method, base: &str, path: &str) -> Result<Answer, ClientError> {
        let client = awc::Client::builder()
            .timeout(DEADLINE)
            .disable_redirects()
            .finish();
        let mut request = client
            .request(method, format!("{base}{path}"))
            .insert_header(header::ContentType::json());
        if let Some(key) = &self.key {
            request = request.insert_header((header::AUTHORIZATION, format!("Bearer {key}")));
        }
        let sent = request.send().await;
        let mut response = sent.map_err(|error| unreachable(base, &error))?;
        let body = response.body().limit(MAX_BODY).await;
        let body = body.map_err(|error| ClientError::Unreachable {
            url: base.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Answer {
            status: response.status(),
            body,
        })
    }
}

fn check(base: &str) -> Result<(), ClientError> {
    let bad = |reason: String| ClientError::BadUrl {
        url: base.to_owned(),
        reason,
    };
    let uri: Uri = base
        .parse()
        .map_err(|error: actix_web::http::uri::InvalidUri| bad(error.to_string()))?;
    match uri.scheme_str() {
        Some("http") => Ok(()),
        Some("https") => Err(bad(
            "kvwarden itself speaks plain HTTP; ask it behind the proxy that adds TLS".to_owned(),
        )),
        _ => Err(bad("it has another scheme than http".to_owned())),
    }
}

fn unreachable(base: &str, error: &SendRequestError) -> ClientError {
    let url = base.to_owned();
    if let SendRequestError::Connect(ConnectError::Io(io)) = error
        && io.kind() == io::ErrorKind::ConnectionRefused
    {
        return ClientError::Refused { url };
    }
    let reason = error.to_string();
    if let SendRequestError::Timeout | SendRequestError::Connect(ConnectError::Timeout) = error {
        ClientError::Silent { url }
    } else if let SendRequestError::Response(_) = error {
        ClientError::NotOurs { url, reason }
    } else {
        ClientError::Unreachable { url, reason }
    }
}

/// Not the path is unknown, but the model in it.
fn is_about_a_model(body: &[u8]) -> bool {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    json["error"]["param"] == "model"
}

/// The message in OpenAI's error shape, else the beginning of the body.
fn message_of(body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    match json["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(SHOWN)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: Option<&str>, host: Option<&str>, port: Option<u16>) -> Target {
        Target {
            url: url.map(str::to_owned),
            host: host.map(str::to_owned),
            port,
            key: None,
        }
    }

    #[test]
    fn address_is_put_together_from_what_was_given() {
        assert_eq!(target(None, None, None).base(), "http://127.0.0.1:8000");
        let six = target(None, Some("::1"), Some(9));
        assert_eq!(six.base(), "http://[::1]:9");
        let slash = target(Some("http://node:1/"), None, None);
        assert_eq!(slash.base(), "http://node:1");
        let bare = target(Some("node:1"), None, None);
        assert_eq!(bare.base(), "http://node:1");
    }

    #[test]
    fn https_is_refused_with_what_to_do() {
        let error = check("https://node").unwrap_err().to_string();
        assert!(error.contains("behind the proxy"), "{error}");
        assert!(check("http://a b").is_err() && check("ftp://node").is_err());
    }

    #[test]
    fn message_of_an_error_is_found_and_other_bodies_are_cut_short() {
        assert_eq!(
            message_of(br#"{"error":{"message":"draining"}}"#),
            "draining"
        );
        assert_eq!(message_of(b"\x1b[2Jx"), " [2Jx");
        assert_eq!(message_of(&[b'x'; 900]).len(), 200);
    }
}
