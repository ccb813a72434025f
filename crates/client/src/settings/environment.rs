//! Settings from the environment, and the variables that look like settings and are none.

use std::collections::BTreeSet;

use figment::value::{Dict, Value};

use super::Layer;
use super::suggest::similar;

/// The prefix of environment variables: the key `grpc-port` is `GITSTAFETTE_GRPC_PORT`.
const PREFIX: &str = "GITSTAFETTE_";

/// The environment's variables, without those that are not text: no setting is.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// One layer for each variable that sets something. The prefixed names win over the others.
pub(super) fn layers(
    environment: &[(String, String)],
    aliases: &[(&str, &[&str])],
    known: &Dict,
) -> Vec<Layer> {
    let lookup = |name: &str| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value);
    let layer = |variable: &str, keys: &[&str]| {
        let value = lookup(variable).filter(|value| !value.is_empty() && !is_service(variable, value))?;
        let values = keys.iter().map(|key| ((*key).to_owned(), Value::from(value.clone()))).collect();
        Some(Layer { name: format!("environment variable {variable}"), values })
    };
    let prefixed = known.keys().filter_map(|key| layer(&variable(key), &[key]));
    aliases.iter().filter_map(|(variable, keys)| layer(variable, keys)).chain(prefixed).collect()
}

/// What to say about variables with the prefix that set nothing. The variables of the other program are fine: both programs
/// may share one file of variables.
pub(super) fn unknown(environment: &[(String, String)], known: &Dict, others: &[String]) -> Vec<String> {
    let settings: BTreeSet<String> = known.keys().chain(others).map(|key| variable(key)).collect();
    environment
        .iter()
        .filter(|(name, value)| has_prefix(name) && !is_service(name, value))
        .filter(|(name, _)| !settings.contains(name))
        .map(|(name, _)| {
            format!("the environment variable {name} is not a setting; {}", advice(name, known, others))
        })
        .collect()
}

fn advice(name: &str, known: &Dict, others: &[String]) -> String {
    let name = &name[PREFIX.len()..];
    let tables = known.iter().filter_map(|(section, value)| Some((section, value.as_dict()?)));
    let mut tables =
        tables.flat_map(|(section, tables)| tables.keys().map(move |table| format!("{section}-{table}-")));
    if tables.any(|table| variable(name).starts_with(&variable(&table))) {
        return "the keys of tables are set in the configuration file only".to_owned();
    }
    match similar(name, known.keys().chain(others)) {
        Some(key) => format!("did you mean {}?", variable(key)),
        None => "`config default` lists all settings".to_owned(),
    }
}

fn has_prefix(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The variable of a key: `grpc-port` is `GITSTAFETTE_GRPC_PORT`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('-', "_").to_ascii_uppercase())
}

/// Whether Kubernetes sets this variable for a Service, such as `gitstafette` or `gitstafette-server` (Kubernetes docs,
/// "Service", "Environment variables"; the names are those of Docker's links): `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`,
/// `NAME_SERVICE_PORT_HTTP`, `NAME_PORT=tcp://…`, `NAME_PORT_80_TCP`, `NAME_PORT_80_TCP_ADDR`.
fn is_service(name: &str, value: &str) -> bool {
    let is_port = |text: &str| {
        let mut parts = text.split('_');
        let number = parts.next().unwrap_or_default();
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!((parts.next(), parts.next()), (None | Some("PROTO" | "PORT" | "ADDR"), None))
    };
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.split_once("_PORT_").is_some_and(|(_, port)| is_port(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        let relay =
            Dict::from([("push".to_owned(), Dict::new().into()), ("pull".to_owned(), Dict::new().into())]);
        let mut known = Dict::from([("relay".to_owned(), relay.into())]);
        for key in ["port", "token", "token-file", "webhook-hmac", "relay-host"] {
            known.insert(key.to_owned(), "".into());
        }
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        unknown(&variables, &known, &["grpc-port".to_owned(), "repositories".to_owned()])
    }

    #[test]
    fn misspelt_variables_get_a_suggestion() {
        for (name, expected) in [
            ("GITSTAFETTE_TOKENS", "did you mean GITSTAFETTE_TOKEN?"),
            ("GITSTAFETTE_TOKENFILE", "did you mean GITSTAFETTE_TOKEN_FILE?"),
            ("GITSTAFETTE_WEBHOOK_HMCA", "did you mean GITSTAFETTE_WEBHOOK_HMAC?"),
            ("gitstafette_port", "did you mean GITSTAFETTE_PORT?"),
            ("GITSTAFETTE_REPOSITORY", "did you mean GITSTAFETTE_REPOSITORIES?"),
            ("GITSTAFETTE_VERSION", "`config default` lists all settings"),
            ("GITSTAFETTE_", "`config default` lists all settings"),
            (
                "GITSTAFETTE_RELAY_PULL_EDGE_TOKEN",
                "the keys of tables are set in the configuration file only",
            ),
        ] {
            let warnings = warnings(&[(name, "x")]);
            assert_eq!(warnings, [format!("the environment variable {name} is not a setting; {expected}")]);
        }
    }

    #[test]
    fn both_programs_settings_and_other_programs_variables_are_fine() {
        for name in
            ["GITSTAFETTE_PORT", "GITSTAFETTE_GRPC_PORT", "GITSTAFETTE_REPOSITORIES", "PATH", "GITSTA", "X"]
        {
            assert_eq!(warnings(&[(name, "x")]), [""; 0], "{name}");
        }
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_is_ignored() {
        for service in ["GITSTAFETTE", "GITSTAFETTE_SERVER", "GITSTAFETTE_CLIENT", "GITSTAFETTE_GRPC"] {
            for (end, value) in [
                ("_SERVICE_HOST", "10.0.0.1"),
                ("_SERVICE_PORT", "1323"),
                ("_SERVICE_PORT_WEBHOOKS", "1323"),
                ("_SERVICE_PORT_HTTP_TCP", "1323"),
                ("_PORT", "tcp://10.0.0.1:1323"),
                ("_PORT", "udp://10.0.0.1:1323"),
                ("_PORT", "sctp://10.0.0.1:1323"),
                ("_PORT_1323_TCP", "tcp://10.0.0.1:1323"),
                ("_PORT_1323_TCP_PROTO", "tcp"),
                ("_PORT_1323_TCP_PORT", "1323"),
                ("_PORT_1323_UDP_ADDR", "10.0.0.1"),
            ] {
                let name = format!("{service}{end}");
                assert_eq!(warnings(&[(&name, value)]), [""; 0], "{name}");
            }
        }
        for other in ["GITSTAFETTE_PORT_X_TCP", "GITSTAFETTE_PORT_1_TCP_X", "GITSTAFETTE_PORT_1_TCP_PORT_X"] {
            assert_eq!(warnings(&[(other, "1")]).len(), 1, "{other}");
        }
    }

    #[test]
    fn a_services_variable_sets_nothing() {
        let known = Dict::from([("port".to_owned(), "".into())]);
        let set =
            |value: &str| layers(&[("GITSTAFETTE_PORT".to_owned(), value.to_owned())], &[], &known).len();
        assert_eq!((set("1323"), set("tcp://10.0.0.1:80"), set("udp://10.0.0.1:80"), set("")), (1, 0, 0, 0));
    }
}
