//! An OpenAI-compatible server that someone else runs: there is nothing to start.

use std::collections::BTreeMap;

use super::{
    dialect::{Dialect, KvOnDisk, KvRoom, Quirks, SourceKind},
    fields::Fields,
};

pub(super) static DIALECT: Dialect = Dialect {
    name: "attach",
    about: "A server that someone else runs",
    family: "attach",
    has_recipe: false,
    source: SourceKind::Url,
    uses_gpu: false,
    takes: &["url", "api_key_env"],
    owns: &[],
    owns_env: &[],
    max_concurrent: 256,
    cuts_prompts: false,
    kv_on_disk: KvOnDisk::Nowhere,
    kv_room: |_| KvRoom::Context,
    args: |_, _| Vec::new(),
    env: |_, _| BTreeMap::new(),
    quirks: QUIRKS,
    fields: Fields::Unknown,
    sleep: None,
    gauges: None,
};

/// Of a server of which nothing is known but that it speaks OpenAI's protocol.
pub(super) const QUIRKS: Quirks = Quirks {
    aborts_unstreamed: true,
    orders_by_priority: false,
    salts_prefix_cache: false,
    usage_is_per_choice: false,
    tokenizes_content: false,
};
