//! Tenants, keys, and who is let in.

use super::*;
use crate::config::{KeyHash, TenantHeader};

fn hash(key: &str) -> String {
    KeyHash::of(key).to_string()
}

#[test]
fn tenant_inherits_what_it_does_not_say() {
    let text = format!(
        "[tenant_defaults]\nrate_limit_rpm = 60\npriority = 3\n[tenants.a]\nrate_limit_rpm = 5\n[tenants.b]\n{MODEL}"
    );
    let tenants = load(&text).tenants;
    assert_eq!(
        (tenants[0].limits.rate_limit_rpm, tenants[0].limits.priority),
        (Some(5), 3)
    );
    assert_eq!(
        (tenants[1].limits.rate_limit_rpm, tenants[1].limits.priority),
        (Some(60), 3)
    );
}

#[test]
fn key_hash_survives_being_written() {
    let hash = KeyHash::of("abc");
    assert_eq!(
        hash.to_string(),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(KeyHash::parse(&hash.to_string()), Some(hash));
    assert_eq!(KeyHash::parse(&hash.to_string().to_uppercase()), None);
}

#[test]
fn one_key_cannot_mean_two_tenants() {
    let key = hash("k");
    let text = format!(
        "[tenants.a]\napi_keys = [\"{key}\"]\n[tenants.b]\napi_keys = [\"{key}\"]\n{MODEL}"
    );
    assert_eq!(
        told(&text).0,
        "tenants.b.api_keys[0]: tenant `a` has the same key"
    );
}

#[test]
fn malformed_hash_is_refused_without_being_repeated() {
    let secret = "sk-live-1234567890";
    for table in ["tenants.a]\napi_keys", "auth]\nadmin_keys"] {
        let text = format!("[{table} = [\n  \"{secret}\",\n]\n{MODEL}");
        let error = try_load(&text).unwrap_err();
        assert!(
            error.problems[0]
                .help
                .as_deref()
                .unwrap()
                .contains("kvwarden key")
        );
        assert_eq!(error.problems[0].at, Some((3, 3)));
        assert!(!error.render().contains("1234567890"), "{}", error.render());
        assert!(!format!("{error:?}").contains("1234567890"));
    }
}

#[test]
fn key_of_the_wrong_type_is_not_repeated_either() {
    let text = format!("[tenants.a]\napi_keys = \"sk-live-1234567890\"\n{MODEL}");
    let error = try_load(&text).unwrap_err();
    assert_eq!(error.problems[0].message, "expected a list");
    assert!(!format!("{error:?}").contains("1234567890"));
}

#[test]
fn short_hash_is_told_how_long_it_is() {
    let (told, _) = told(&format!(
        "[tenants.a]\napi_keys = [\"sha256:abc\"]\n{MODEL}"
    ));
    assert!(
        told.ends_with("64 hexadecimal digits have to follow `sha256:`, not 3 characters"),
        "{told}"
    );
}

#[test]
fn open_address_without_any_key_is_refused() {
    for listen in ["0.0.0.0:8000", "[::]:8000", "192.168.0.1:8000"] {
        let (told, help) = told(&format!("listen = \"{listen}\"\n[tenants.a]\n{MODEL}"));
        assert!(
            told.ends_with("is open to other machines, but no tenant has an API key"),
            "{told}"
        );
        assert!(help.contains("kvwarden key"));
    }
    for listen in ["127.0.0.1:8000", "[::1]:8000", "127.1.2.3:8000"] {
        load(&format!("listen = \"{listen}\"\n{MODEL}"));
    }
    let key = hash("k");
    load(&format!(
        "listen = \"0.0.0.0:8000\"\n[tenants.a]\napi_keys = [\"{key}\"]\n{MODEL}"
    ));
}

#[test]
fn open_address_that_believes_the_header_is_warned_about() {
    let text = format!("listen = \"0.0.0.0:8000\"\nauth.tenant_header = \"always\"\n{MODEL}");
    let loaded = try_load(&text).unwrap();
    assert_eq!(loaded.config.auth.tenant_header, TenantHeader::Always);
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(
        (loaded.warnings[0].key.as_str(), loaded.warnings[0].at),
        ("auth.tenant_header", Some((2, 22)))
    );
    assert!(loaded.warnings[0].message.contains("X-Tenant-ID"));
}

#[test]
fn tenant_names_that_do_not_fit_into_headers_are_refused() {
    let long = "x".repeat(65);
    for name in ["", "a b", "ü", "a\\nb", &long] {
        let (told, _) = told(&format!("[tenants.\"{name}\"]\n{MODEL}"));
        assert!(told.contains("cannot name a tenant"), "{told}");
    }
    load(&format!("[tenants.\"org:team@x/y_z.1-2\"]\n{MODEL}"));
}

#[test]
fn burst_without_a_rate_is_refused() {
    let (told, _) = told(&format!("[tenants.a]\nrate_limit_burst = 5\n{MODEL}"));
    assert_eq!(
        told,
        "tenants.a.rate_limit_burst: a burst without a rate limits nothing"
    );
    load(&format!(
        "[tenant_defaults]\nrate_limit_rpm = 60\n[tenants.a]\nrate_limit_burst = 5\n{MODEL}"
    ));
}

#[test]
fn limits_of_zero_are_refused_once_where_they_stand() {
    for key in [
        "rate_limit_rpm",
        "tokens_per_minute",
        "tokens_per_day",
        "max_concurrent_requests",
        "max_queued_requests",
    ] {
        let (told, _) = told(&format!(
            "[tenant_defaults]\n{key} = 0\n[tenants.a]\n{MODEL}"
        ));
        assert_eq!(
            told,
            format!("tenant_defaults.{key}: zero would refuse every request")
        );
    }
}
