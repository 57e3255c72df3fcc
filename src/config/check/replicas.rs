//! Further engines of a model: what they share with it, and what they may not say themselves.

use kvwarden_policy::ModelId;

use crate::config::{
    ModelConfig,
    file::{File, given},
    path::KeyPath,
    read::one_of,
    report::Report,
};

/// Keys of the model as a whole.
const SHARED: [&str; 12] = [
    "id",
    "model_id",
    "short_name",
    "aliases",
    "max_concurrent",
    "step_tokens",
    "scheduling",
    "queue_size",
    "long_prompt_tokens",
    "autostart",
    "pinned",
    "idle_ttl",
];

/// Gives every replica the name and the settings of its model.
pub(super) fn join(file: &File, models: &mut [ModelConfig], report: &mut Report) {
    for (index, model) in file.models.iter().enumerate() {
        let Some(of) = &model.replica_of else {
            continue;
        };
        let mut section = report.section(KeyPath::of("models").index(index));
        let ids = || file.models.iter().map(|other| other.id.as_deref());
        let Some(original) = ids().position(|id| id == Some(of.as_str())) else {
            let ids: Vec<&str> = ids().flatten().collect();
            section
                .problem("replica_of", format!("no model has the id `{of}`"))
                .help(one_of(of, "models", &ids));
            continue;
        };
        let given = given(model);
        for key in SHARED.iter().filter(|key| given.contains_key(**key)) {
            // A default is there without being said.
            if !section.stands(key) {
                continue;
            }
            section
                .problem(
                    key,
                    format!("`{key}` belongs to the model, not to one of its engines"),
                )
                .help(format!("say it in the entry with the id `{of}`"));
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
