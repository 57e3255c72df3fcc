//! Is an engine's environment there?

use super::{Check, Needs};
use crate::{
    install::{Environment, State},
    terminal,
};

pub(super) fn environment(environment: &Environment, needs: &Needs) -> Check {
    let engine = environment.name;
    let name = name_of(engine);
    let is_needed = needs.are_known && needs.contains(engine);
    match &environment.state {
        State::Ready { version } => {
            let size = terminal::bytes(environment.bytes);
            Check::ok(name, format!("{version}, {size}"))
        }
        State::Partial => Check::warning(
            name,
            format!(
                "an install is under way, was interrupted, or is of an older kvwarden ({})",
                environment.path.display()
            ),
            format!("kvwarden engine install {engine}"),
        ),
        State::Missing if is_needed => Check::warning(
            name,
            "not installed; the first start will take as long as that",
            format!("kvwarden engine install {engine}"),
        ),
        State::Missing => Check::not_applicable(
            name,
            format!("not installed (kvwarden engine install {engine})"),
        ),
    }
}

/// A check's name is fixed, as scripts look for it.
fn name_of(engine: &str) -> &'static str {
    match engine {
        "llamacpp" => "engine llamacpp",
        "vllm" => "engine vllm",
        "vllm-cpu" => "engine vllm-cpu",
        "sglang" => "engine sglang",
        "sglang-cpu" => "engine sglang-cpu",
        _ => "engine",
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{known, unknown},
        *,
    };
    use crate::{cli::doctor, install::recipe::RECIPES};

    fn check(state: State, needs: &Needs) -> Check {
        let found = Environment {
            name: "vllm",
            state,
            bytes: 3 << 20,
            path: "/d/engines/vllm".into(),
        };
        environment(&found, needs)
    }

    #[test]
    fn missing_engine_matters_only_to_a_configuration_that_names_it() {
        let state = |needs| check(State::Missing, &needs).state;
        assert_eq!(state(known(&["vllm"])), doctor::State::Warning);
        assert_eq!(state(known(&["sglang"])), doctor::State::NotApplicable);
        assert_eq!(state(unknown()), doctor::State::NotApplicable);
    }

    #[test]
    fn partial_install_tells_how_to_finish_it() {
        let partial = check(State::Partial, &unknown());
        assert_eq!(partial.fix.as_deref(), Some("kvwarden engine install vllm"));
        let ready = State::Ready {
            version: "0.32.0".to_owned(),
        };
        assert_eq!(check(ready, &unknown()).finding, "0.32.0, 3.0 MiB");
    }

    #[test]
    fn every_recipe_has_a_check_of_its_own() {
        for recipe in &RECIPES {
            assert_eq!(name_of(recipe.name), format!("engine {}", recipe.name));
        }
    }
}
