use super::*;

const KEYS: &str = "port = 1323\nname = \"\"\nrepositories = []\nage = \"7d\"\nsize = \"25MiB\"\n\
                        token = \"\"\ntoken-file = []\nopen = false\nbind = \"\"\n";

#[derive(Default, Serialize)]
struct Flags {
    port: Option<String>,
    repositories: Vec<String>,
}

fn load(file: Option<&str>, environment: &[(&str, &str)], flags: &Flags) -> Settings {
    let written = file.map(|text| {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, text).unwrap();
        path
    });
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let other = OtherProgram { name: "other", keys: || vec!["grpc-port".into(), "names".into()] };
    let known = Known { defaults: KEYS, environment: &[("PORT", &["port"])], other };
    Settings::load(known, written.as_deref(), environment, flags)
}

#[test]
fn later_layers_win() {
    let flags = Flags { port: Some("5".into()), ..Flags::default() };
    let none = Flags::default();
    assert_eq!(load(None, &[], &none).port("port", 0), 1323);
    assert_eq!(load(Some("port = 2"), &[], &none).port("port", 0), 2);
    assert_eq!(load(Some("port = 2"), &[("PORT", "3")], &none).port("port", 0), 3);
    assert_eq!(load(None, &[("PORT", "3"), ("GITSTAFETTE_PORT", "4")], &none).port("port", 0), 4);
    assert_eq!(load(None, &[("GITSTAFETTE_PORT", "4")], &flags).port("port", 0), 5);
    assert_eq!(load(None, &[("GITSTAFETTE_PORT", "tcp://10.0.0.1:80")], &none).port("port", 0), 1323);
    assert!(load(Some("port = 2"), &[], &none).is_set("port"));
    assert!(!load(None, &[], &none).is_set("port"));
}

#[test]
fn lists_from_everywhere() {
    let flags = Flags { repositories: vec!["a,b".into(), "c".into()], ..Flags::default() };
    assert_eq!(load(None, &[], &flags).list::<String>("repositories"), ["a", "b", "c"]);
    let none = Flags::default();
    assert_eq!(
        load(Some("repositories = [\"a\", 7]"), &[], &none).list::<String>("repositories"),
        ["a", "7"]
    );
    assert_eq!(
        load(None, &[("GITSTAFETTE_REPOSITORIES", " a , b,")], &none).list::<String>("repositories"),
        ["a", "b"]
    );
}

#[test]
fn units() {
    let mut settings = load(None, &[], &Flags::default());
    assert_eq!(settings.duration("age"), Duration::from_secs(7 * 24 * 3600));
    assert_eq!(settings.bytes("size"), 25 << 20);
    assert_eq!("180".parse(), Ok(Span(Duration::from_secs(180))));
    assert_eq!("3650d".parse(), Ok(Span(values::MAX_DURATION)));
    for long in ["3651d", "11y", "18446744073709551615"] {
        let error = long.parse::<Span>().unwrap_err();
        assert_eq!(error, format!("{long:?} is more than 3650d, the longest duration"));
    }
    for wrong in ["", "MiB", "-1", "1.5GiB", "1TB", "99999999999999999999", "99999999999GiB"] {
        assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
    }
}

#[test]
fn switches_in_gos_spellings() {
    let of = |text: &str| load(None, &[("GITSTAFETTE_OPEN", text)], &Flags::default()).flag("open");
    assert!(["true", "True", "TRUE", "t", "T", "1"].into_iter().all(of));
    assert!(!["false", "False", "FALSE", "f", "F", "0"].into_iter().any(of));
    let mut wrong = load(None, &[("GITSTAFETTE_OPEN", "yes")], &Flags::default());
    assert!(!wrong.flag("open"));
    assert!(wrong.finish(()).unwrap_err().to_string().starts_with("open: \"yes\" is neither true nor false"));
}

#[test]
fn every_mistake_is_reported_with_its_place() {
    let mut settings = load(
        Some("age = \"soon\"\nrepository = 1"),
        &[("GITSTAFETTE_SIZE", "big"), ("GITSTAFETTE_BIND", "here")],
        &Flags { port: Some("abc".into()), ..Flags::default() },
    );
    settings.port("port", 0);
    settings.duration("age");
    settings.bytes("size");
    settings.optional_ip("bind");
    let error = settings.finish(()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.problems().len(), 5, "{text}");
    for part in [
        "repository: there is no such key; did you mean repositories? (from ",
        "port: \"abc\" is not a port: a whole number from 0 to 65535 (from command line)",
        "size: \"big\" is not a number of bytes such as 512, 64KiB, 25MiB or 1GiB (from environment variable GITSTAFETTE_SIZE)",
        "age: \"soon\" is not a duration",
        "bind: \"here\" is not an IP address such as 0.0.0.0, 127.0.0.1 or ::1",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}

#[test]
fn unknown_keys_get_a_suggestion() {
    for (text, expected) in [
        ("prot = 1", "prot: there is no such key; did you mean port? (from "),
        ("Repositories = 1", "Repositories: there is no such key; did you mean repositories? (from "),
        ("tokenFile = 1", "tokenFile: there is no such key; did you mean token-file? (from "),
        ("zzz = 1", "zzz: there is no such key; `config default` lists them all (from "),
        ("grpc-port = 1", "grpc-port: there is no such key; it is a setting of other (from "),
        ("names = 1", "names: there is no such key; it is a setting of other; did you mean name? (from "),
    ] {
        let error = load(Some(text), &[], &Flags::default()).finish(()).unwrap_err();
        assert!(error.problems().len() == 1 && error.problems()[0].starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn a_syntax_error_quotes_nothing() {
    let error =
        load(Some("port = 1\ntoken = hunter2"), &[], &Flags::default()).finish(()).unwrap_err().to_string();
    assert!(error.contains("line 2, column 9") && !error.contains("hunter2"), "{error}");
}

#[test]
fn secrets_from_values_and_files() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from file\n").unwrap();
    let path = file.path().to_str().unwrap();
    let environment = [("GITSTAFETTE_TOKEN", "a,b"), ("GITSTAFETTE_TOKEN_FILE", path)];
    let secrets = load(None, &environment, &Flags::default()).secrets("token");
    assert_eq!(secrets.len(), 2);
    assert!(secrets[0].matches(b"a,b") && secrets[1].matches(b"from file"));

    std::fs::write(file.path(), "\u{feff}from file\r\n").unwrap();
    let environment = [("GITSTAFETTE_TOKEN", "a\r"), ("GITSTAFETTE_TOKEN_FILE", path)];
    let mut windows = load(None, &environment, &Flags::default());
    let secrets = windows.secrets("token");
    assert!(secrets[0].matches(b"a") && secrets[1].matches(b"from file"));
    let warnings = windows.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("token: the secret was used without a Windows line end"), "{warnings:?}");
    let of_file = format!("token-file: {path}: the secret was used without a byte order mark");
    assert!(warnings[1].starts_with(&of_file), "{warnings:?}");
    assert!(windows.finish(()).is_ok());

    let mut missing = load(None, &[("GITSTAFETTE_TOKEN_FILE", "/does/not/exist")], &Flags::default());
    missing.secrets("token");
    assert!(
        missing
            .finish(())
            .unwrap_err()
            .to_string()
            .contains("token-file: /does/not/exist: there is no such file")
    );
}
