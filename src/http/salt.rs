//! Prefix caches are shared between requests, and whether a prompt was cached shows in its time to
//! first token. A salt per tenant keeps one tenant from probing another's prompts.

use hmac::{Hmac, KeyInit as _, Mac as _};
use kvwarden_policy::TenantId;
use sha2::Sha256;

/// Derives salts from a secret of this run; nothing outlives the engines' caches.
pub struct Salts {
    /// Has taken in the secret already, which is half of the work.
    keyed: Hmac<Sha256>,
}

impl Salts {
    /// A fresh secret.
    #[must_use]
    pub fn new() -> Self {
        let secret: [u8; 32] = rand::random();
        Self {
            keyed: Hmac::new_from_slice(&secret)
                .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length")),
        }
    }

    /// The salt of a tenant, and of the partition it made for itself within its own.
    #[must_use]
    pub fn of(&self, tenant: &TenantId, own: Option<&str>) -> String {
        let mut mac = self.keyed.clone();
        mac.update(tenant.as_str().as_bytes());
        // No tenant id holds a zero byte, so no pair of inputs runs together into another.
        mac.update(b"\0");
        mac.update(own.unwrap_or_default().as_bytes());
        let tag = mac.finalize().into_bytes();
        let half = tag.first_chunk().copied().unwrap_or_default();
        format!("{:032x}", u128::from_be_bytes(half))
    }
}

impl Default for Salts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_and_their_own_salts_are_told_apart() {
        let salts = Salts::new();
        let (a, b) = (TenantId::from("a"), TenantId::from("b"));
        assert_eq!(salts.of(&a, None), salts.of(&a, None));
        assert_ne!(salts.of(&a, None), salts.of(&b, None));
        assert_ne!(salts.of(&a, Some("x")), salts.of(&a, None));
        assert_ne!(salts.of(&a, Some("x")), salts.of(&b, Some("x")));
    }
}
