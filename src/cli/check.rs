//! `kvwarden check FILE`: everything that is wrong with a configuration, without starting anything.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use serde_json::json;

use crate::config::{Config, ConfigError, Loaded, Overrides, process_environment};

/// A configuration that is refused; 1 is for failures of kvwarden itself.
const REFUSED: u8 = 2;

/// Checks a configuration file and says everything that is wrong with it.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// The file: TOML, or the YAML of the Python KVWarden.
    pub file: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Exit code 0 where the file can be served, 2 where not.
///
/// # Errors
/// Where the result cannot be printed.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let result = Config::load(&args.file, &process_environment(), &Overrides::default());
    let (mut out, mut err) = (anstream::stdout(), anstream::stderr());
    match args.json {
        true => writeln!(out, "{:#}", as_json(&result))?,
        false => print(&result, &mut out, &mut err)?,
    }
    Ok(if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

/// Findings go where compilers put them; the summary is the output.
fn print(
    result: &Result<Loaded, ConfigError>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    match result {
        Ok(loaded) => {
            write!(err, "{}", loaded.render_warnings())?;
            writeln!(out, "{}", summary(&loaded.origin.name, &loaded.config))
        }
        Err(error) => {
            write!(err, "{}", error.render())?;
            writeln!(err, "{error}")
        }
    }
}

fn summary(name: &str, config: &Config) -> String {
    let count = |number: usize, thing: &str| match number {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    };
    let models = count(config.models.len(), "model");
    let tenants = count(config.tenants.len(), "tenant");
    format!(
        "{name} is fine: {models}, {tenants}, listens on {}",
        config.listen
    )
}

fn as_json(result: &Result<Loaded, ConfigError>) -> serde_json::Value {
    match result {
        Ok(Loaded {
            config, warnings, ..
        }) => json!({
            "ok": true,
            "listen": config.listen.to_string(),
            "models": config.models.iter().map(|model| &model.id).collect::<Vec<_>>(),
            "tenants": config.tenants.iter().map(|tenant| &tenant.id).collect::<Vec<_>>(),
            "problems": [],
            "warnings": warnings,
        }),
        Err(ConfigError {
            problems, warnings, ..
        }) => json!({
            "ok": false,
            "problems": problems,
            "warnings": warnings,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn load(text: &str) -> Result<Loaded, ConfigError> {
        let path = "node.toml".as_ref();
        Config::load_str(text, path, &Environment::new(), &Overrides::default())
    }

    fn printed(result: &Result<Loaded, ConfigError>) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        print(result, &mut out, &mut err).unwrap();
        let plain = |bytes: Vec<u8>| anstream::adapter::strip_bytes(&bytes).into_vec();
        let text = |bytes| String::from_utf8(plain(bytes)).unwrap();
        (text(out), text(err))
    }

    const GOOD: &str = "[[models]]\nid = \"m\"\nengine = \"sim\"\n[tenants.a]\n[tenants.b]\n";

    #[test]
    fn good_file_is_summed_up_in_one_line() {
        let (out, err) = printed(&load(GOOD));
        let expected = "node.toml is fine: 1 model, 2 tenants, listens on 127.0.0.1:8000\n";
        assert_eq!((out.as_str(), err.as_str()), (expected, ""));
    }

    #[test]
    fn bad_file_shows_every_problem_and_nothing_on_stdout() {
        let (out, err) = printed(&load("listne = \"x\"\n[[models]]\nid = 3\n"));
        assert_eq!(out, "");
        assert!(
            err.contains("node.toml:1:1") && err.contains("node.toml:3:6"),
            "{err}"
        );
        assert!(err.ends_with("node.toml has 2 problems\n"), "{err}");
    }

    #[test]
    fn json_carries_the_place_of_a_problem() {
        let json = as_json(&load("listne = \"x\"\n[[models]]\nid = \"m\"\n"));
        assert_eq!(json["ok"], false);
        assert_eq!(json["problems"][0]["key"], "listne");
        assert_eq!(json["problems"][0]["at"], json!([1, 1]));
        assert_eq!(as_json(&load(GOOD))["models"], json!(["m"]));
    }

    #[test]
    fn file_that_cannot_be_read_is_refused() {
        let result = Config::load(
            "/nonexistent/node.toml".as_ref(),
            &Environment::new(),
            &Overrides::default(),
        );
        let (_, err) = printed(&result);
        assert!(
            err.starts_with("error: cannot be read: No such file"),
            "{err}"
        );
    }
}
