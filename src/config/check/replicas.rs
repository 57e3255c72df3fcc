//! Further engines of a model: what they share with it, and what they may not say themselves.

use kvwarden_policy::ModelId;

use crate::config::{
    ModelConfig,
    file::{File, Model},
    path::KeyPath,
    read::one_of,
    report::Report,
};

/// Keys of the model as a whole.
type Given = fn(&Model) -> bool;
const SHARED: [(&str, Given); 12] = [
    ("id", |model| model.id.is_some()),
    ("model_id", |model| model.model_id.is_some()),
    ("short_name", |model| model.short_name.is_some()),
    ("aliases", |model| !model.aliases.is_empty()),
    ("max_concurrent", |model| model.max_concurrent.is_some()),
    ("step_tokens", |model| model.step_tokens.is_some()),
    ("scheduling", |model| model.scheduling.is_some()),
    ("queue_size", |model| model.queue_size.is_some()),
    ("long_prompt_tokens", |model| {
        model.long_prompt_tokens.is_some()
    }),
    ("autostart", |model| model.autostart.is_some()),
    ("pinned", |model| model.pinned.is_some()),
    ("idle_ttl", |model| model.idle_ttl.is_some()),
];

/// Gives every replica the name and the settings of its model.
pub(super) fn join(file: &File, models: &mut [ModelConfig], report: &mut Report) {
    for (index, model) in file.models.iter().enumerate() {
        let Some(of) = &model.replica_of else {
            continue;
        };
        let path = KeyPath::of("models").index(index);
        let is_original = |other: &&Model| other.id.as_ref() == Some(of);
        let Some(original) = file.models.iter().position(|other| is_original(&other)) else {
            let ids: Vec<&str> = file
                .models
                .iter()
                .filter_map(|other| other.id.as_deref())
                .collect();
            let message = format!("no model has the id `{of}`");
            report.problem(&path.key("replica_of"), message, one_of(of, "models", &ids));
            continue;
        };
        for (key, _) in SHARED.iter().filter(|(_, is_given)| is_given(model)) {
            let message = format!("`{key}` belongs to the model, not to one of its engines");
            let help = format!("say it in the entry with the id `{of}`");
            report.problem(&path.key(key), message, help);
        }
        let earlier = file.models[..index].iter();
        let number = earlier
            .filter(|other| other.replica_of.as_ref() == Some(of))
            .count()
            + 2;
        let first = models[original].clone();
        let replica = &mut models[index];
        replica.engine_name = ModelId::from(format!("{of}#{number}"));
        replica.flags.capacity = first.flags.capacity;
        replica.id = first.id;
        replica.autostart = first.autostart;
        replica.residency.pinned = first.residency.pinned;
        replica.residency.idle_ttl = first.residency.idle_ttl;
    }
}
