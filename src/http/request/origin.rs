//! Whether a request comes from this machine, and on nobody else's behalf.
//!
//! Where no keys are in use this is all there is to go by, for the name of a tenant as for what operators
//! do, so there is one rule. A proxy on this machine is no guest from it, and a page in a browser here that
//! has rebound its own name to this address still sends that name.

use std::net::IpAddr;

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
};

/// What proxies add; further names begin with [`FORWARDED`].
const BY_PROXIES: [&str; 7] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
];

/// `X-Forwarded-For`, `-Host`, `-Proto` and whatever else is passed on.
const FORWARDED: &str = "x-forwarded";

/// It does.
#[must_use]
pub(crate) fn is_own(request: &HttpRequest) -> bool {
    is_from_here(request) && !is_forwarded(request.headers()) && is_to_here(request)
}

/// The other end of its connection is on this machine.
#[must_use]
pub(crate) fn is_from_here(request: &HttpRequest) -> bool {
    let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
    peer.as_ref().is_some_and(IpAddr::is_loopback)
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(header::HeaderName::as_str);
    names.any(|name| name.starts_with(FORWARDED) || BY_PROXIES.contains(&name))
}

/// It is addressed to this machine by a name that no other can have. Browsers always send one.
fn is_to_here(request: &HttpRequest) -> bool {
    let mut hosts = request.headers().get_all(header::HOST);
    let Some(host) = hosts.next() else {
        return true;
    };
    hosts.next().is_none() && host.to_str().is_ok_and(is_local)
}

fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        if is_port { name } else { host }
    });
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn is_own_from(peer: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let request = TestRequest::get().peer_addr(peer.parse().unwrap());
        let with = |request: TestRequest, header: &(_, _)| request.append_header(*header);
        is_own(&headers.iter().fold(request, with).to_http_request())
    }

    #[test]
    fn what_a_proxy_passed_on_is_not_from_this_machine() {
        let here = "127.0.0.1:4000";
        assert!(is_own_from(here, &[("host", "localhost:8000")]));
        for header in [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "llm.example.org"),
            ("forwarded", "for=203.0.113.9"),
            ("x-real-ip", "127.0.0.1"),
            ("via", "1.1 proxy"),
            ("cf-connecting-ip", "203.0.113.9"),
            ("true-client-ip", ""),
        ] {
            assert!(
                !is_own_from(here, &[("host", "localhost"), header]),
                "{header:?}"
            );
        }
    }

    #[test]
    fn only_names_of_this_machine_alone_are_its_own() {
        for (peer, host, wanted) in [
            ("127.0.0.1:1", "127.0.0.1", true),
            ("127.0.0.1:1", "127.3.2.1:8000", true),
            ("[::1]:1", "[::1]:8000", true),
            ("[::ffff:127.0.0.1]:1", "LOCALHOST:8000", true),
            ("127.0.0.1:1", "evil.example", false),
            ("127.0.0.1:1", "localhost.evil.example:8000", false),
            ("127.0.0.1:1", "127.0.0.1.evil.example", false),
            ("127.0.0.1:1", "10.0.0.5:8000", false),
            ("127.0.0.1:1", "", false),
            ("10.0.0.5:1", "localhost", false),
        ] {
            assert_eq!(
                is_own_from(peer, &[("host", host)]),
                wanted,
                "{peer} {host}"
            );
        }
        assert!(is_own_from("127.0.0.1:1", &[]), "HTTP/1.0 knows no host");
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert!(!is_own_from("127.0.0.1:1", &two));
    }
}
