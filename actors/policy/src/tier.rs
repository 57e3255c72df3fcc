//! OpenAI's `service_tier`, as far as it changes whose turn it is.

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// Its tenant's own priority.
    #[default]
    Standard,
    /// Later, if that is cheaper.
    Flex,
    /// Sooner, whatever it costs.
    Priority,
}

/// Which tiers a tenant may choose; any other one counts as [`Tier::Standard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// It may go behind its own priority.
    pub flex: bool,
    /// It may go before its own priority.
    pub priority: bool,
}

impl Default for Tiers {
    /// Stepping back harms nobody else; stepping forward is the operator's to allow.
    fn default() -> Self {
        Self {
            flex: true,
            priority: false,
        }
    }
}

impl Tiers {
    /// The class of a request of a tenant with this priority; lower goes first. A tier is one class,
    /// so that an operator who numbers priorities by tens keeps tenants apart whatever they choose.
    #[must_use]
    pub fn class(self, tier: Tier, priority: i32) -> i32 {
        match tier {
            Tier::Flex if self.flex => priority.saturating_add(1),
            Tier::Priority if self.priority => priority.saturating_sub(1),
            Tier::Standard | Tier::Flex | Tier::Priority => priority,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_rises_above_its_priority_unless_the_operator_allows_it() {
        let classes = |tiers: Tiers| {
            [Tier::Standard, Tier::Flex, Tier::Priority].map(|tier| tiers.class(tier, 5))
        };
        let all = Tiers {
            flex: true,
            priority: true,
        };
        let none = Tiers {
            flex: false,
            priority: false,
        };
        assert_eq!(classes(Tiers::default()), [5, 6, 5]);
        assert_eq!(classes(all), [5, 6, 4]);
        assert_eq!(classes(none), [5, 5, 5]);
    }
}
