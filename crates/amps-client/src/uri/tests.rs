use super::*;

fn error(text: &str) -> UriError {
    text.parse::<Uri>().unwrap_err()
}

#[test]
fn everything_is_read() {
    let uri: Uri = "tcps://u%3Aser:p%40ss:w@[::1]:9007/amps/composite-json?bind=127.0.0.1&\
                    tcp_rcvbuf=1000&tcp_sndbuf=2000&tcp_nodelay=yes&ip_protocol_prefer=ipv6"
        .parse()
        .unwrap();
    assert_eq!(uri.scheme(), Scheme::Tcps);
    assert_eq!(
        (uri.user(), uri.password()),
        (Some("u:ser"), Some("p@ss:w"))
    );
    assert_eq!((uri.host(), uri.port()), ("::1", 9007));
    assert_eq!(
        (uri.protocol(), uri.message_type()),
        ("amps", Some("composite-json"))
    );
    assert_eq!(uri.bind(), Some("127.0.0.1".parse().unwrap()));
    assert_eq!(
        (uri.receive_buffer(), uri.send_buffer()),
        (Some(1000), Some(2000))
    );
    assert!(uri.no_delay());
    assert_eq!(uri.ip_preference(), IpPreference::Ipv6);
    assert_eq!(uri.authority(), "[::1]:9007");
}

#[test]
fn defaults_are_the_documented_ones() {
    let uri: Uri = "tcp://localhost:9007/amps".parse().unwrap();
    assert_eq!(
        (uri.user(), uri.password(), uri.message_type()),
        (None, None, None)
    );
    assert!(!uri.no_delay());
    assert_eq!(uri.ip_preference(), IpPreference::Ipv4);
    assert_eq!(uri.with_port(1).to_string(), "tcp://localhost:1/amps");
}

#[test]
fn unix_sockets_are_named_by_an_option() {
    let text = "unix://localhost:0/amps/json?path=/run/my%20amps.sock";
    let uri: Uri = text.parse().unwrap();
    assert_eq!(uri.path(), Some(Path::new("/run/my amps.sock")));
    assert_eq!(uri.to_string(), text);
    assert_eq!(error("unix://localhost:0/amps/json"), UriError::MissingPath);
}

/// It was said that there is no host, and to write one.
#[test]
fn a_socket_written_as_others_do_it_is_told_how_it_is_written_here() {
    for (text, file) in [
        ("unix:///run/a.sock", "/run/a.sock"),
        ("unix:/run/a.sock", "/run/a.sock"),
        ("unix://run/a.sock", "/run/a.sock"),
        ("unix://localhost/run/a.sock", "/run/a.sock"),
        ("unix://localhost:0/run/a.sock", "/run/a.sock"),
        ("unix:///run/my%20amps.sock", "/run/my%20amps.sock"),
        ("unix:///run/my amps.sock", "/run/my%20amps.sock"),
        ("unix:///amps/json?path=/run/a.sock", "/run/a.sock"),
        ("unix://localhost/amps/json?path=/run/a.sock", "/run/a.sock"),
        ("unix:?path=/run/a.sock", "/run/a.sock"),
    ] {
        let said = error(text).to_string();
        let right = format!("unix://localhost:0/amps/json?path={file}");
        assert!(said.ends_with(&format!("write {right}")), "{text}: {said}");
        assert!(right.parse::<Uri>().is_ok(), "{right}");
    }
    let said = error("unix:///run/se@cret.sock").to_string();
    assert!(!said.contains("cret"), "it may be a password: {said}");
    assert_eq!(error("unix://"), UriError::MissingHost { scheme: "unix" });
}

#[test]
fn no_text_form_shows_the_password() {
    let uri: Uri = "tcp://me:secret@h:1/amps".parse().unwrap();
    for shown in [uri.to_string(), format!("{uri:?}"), format!("{uri:#?}")] {
        assert!(!shown.contains("secret"), "{shown}");
    }
    assert!(
        !error("tcp://me:sec%ret@h:1/amps")
            .to_string()
            .contains("sec")
    );
}

/// A user `:t` was shown as `tcp://:t@h`, which reads as the password `t` of nobody; one with a
/// slash as an address without a user.
#[test]
fn marks_in_a_user_or_a_message_type_are_shown_encoded() {
    for text in [
        "tcp://%3At@h:1/amps",
        "tcp://dom%2Fme@h:1/amps",
        "tcp://a%40b%3F%23%25@h:1/amps",
        "tcp://me@h:1/amps/x%2Fy%3Az",
    ] {
        let uri: Uri = text.parse().unwrap();
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri, "{text}");
    }
    let with_password: Uri = "tcp://a%3Ab:c%3Ad@h:1/amps".parse().unwrap();
    assert_eq!(with_password.to_string(), "tcp://a%3Ab:***@h:1/amps");
}

#[test]
fn every_fault_has_its_own_error() {
    let host = || "h".to_owned();
    for (text, expected) in [
        ("", UriError::MissingScheme),
        ("localhost:9007", UriError::MissingScheme),
        ("://h:1/amps", UriError::MissingScheme),
        (
            "http://h:1/amps",
            UriError::UnknownScheme {
                scheme: "http".into(),
            },
        ),
        ("tcp://", UriError::MissingHost { scheme: "tcp" }),
        ("tcp://:1/amps", UriError::MissingHost { scheme: "tcp" }),
        ("tcp://me@:1/amps", UriError::MissingHost { scheme: "tcp" }),
        ("tcp://h/amps", UriError::MissingPort { host: host() }),
        ("tcp://h:/amps", UriError::MissingPort { host: host() }),
        ("tcp://h:x/amps", UriError::BadPort { port: "***".into() }),
        ("tcp://h:+1/amps", UriError::BadPort { port: "***".into() }),
        (
            "tcp://h:65536/amps",
            UriError::BadPort {
                port: "65536".into(),
            },
        ),
        (
            "tcp://::1:9/amps",
            UriError::BadHost {
                host: "::1:9".into(),
            },
        ),
        (
            "tcp://[::g]:9/amps",
            UriError::BadHost { host: "::g".into() },
        ),
        (
            "tcp://[::1:9/amps",
            UriError::BadHost {
                host: "[::1:9".into(),
            },
        ),
        (
            "tcp://[::1]9/amps",
            UriError::BadHost {
                host: "[::1]9".into(),
            },
        ),
        (
            "tcp://me%40h:1/amps",
            UriError::BadHost {
                host: "me@h".into(),
            },
        ),
        ("tcp://a b:1/amps", UriError::BadHost { host: "a b".into() }),
        ("tcp://h:1", UriError::MissingProtocol),
        ("tcp://h:1/", UriError::MissingProtocol),
        (
            "tcp://h:1/fix",
            UriError::UnsupportedProtocol {
                protocol: "fix".into(),
            },
        ),
        (
            "tcp://h:1/amps/json/x",
            UriError::ExtraPath { extra: "x".into() },
        ),
        (
            "tcp://h:1/amps/j%zz",
            UriError::BadEncoding {
                text: "j%zz".into(),
            },
        ),
        (
            "tcp://h:1/amps/j%ff",
            UriError::BadEncoding {
                text: "j%ff".into(),
            },
        ),
        (
            "tcp://h:1/amps?nope=1",
            UriError::UnknownOption {
                name: "nope".into(),
            },
        ),
        (
            "tcp://h:1/amps?compression=zlib",
            UriError::CompressionUnsupported {
                value: "zlib".into(),
            },
        ),
        (
            "tcp://h:1/amps?path=/x",
            UriError::MisplacedOption {
                name: "path".into(),
                scheme: "tcp",
            },
        ),
        (
            "unix://h:1/amps?path=/x&bind=::1",
            UriError::MisplacedOption {
                name: "bind".into(),
                scheme: "unix",
            },
        ),
        (
            "tcp://h:1/amps?bind=::1&bind=::1",
            UriError::RepeatedOption {
                name: "bind".into(),
            },
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
    for (option, expected) in [
        ("bind=here", "an IP address"),
        ("tcp_rcvbuf=0", "a number of bytes above zero"),
        ("tcp_sndbuf=-1", "a number of bytes above zero"),
        ("tcp_nodelay=maybe", "true or false"),
        ("tcp_nodelay", "true or false"),
        ("ip_protocol_prefer=5", "ipv4 or ipv6"),
    ] {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let bad = UriError::BadOption {
            name: name.into(),
            value: value.into(),
            expected,
        };
        assert_eq!(error(&format!("tcp://h:1/amps?{option}")), bad);
    }
}

#[test]
fn a_password_that_cannot_be_parsed_is_not_shown() {
    for text in [
        "tcp://me:s3/cret@h:1/amps/json",
        "tcp://me:s3?cret@h:1/amps/json",
        "tcp://me:s3?cret=x@h:1/amps/json",
        "tcp://me:s3#cr/et@h:1",
        "tcp://me:1/s3cret@h:1/amps/json",
        "tcp://me:1/amps/s3cret/@h:1/amps/json",
        "tcp://me:1/amps?s3cret@h:1/amps/json",
        "tcp://me:1/amps?bind=s3cret@h:1/amps/json",
        "tcp://me:1/amps/%zzs3cret@h:1/amps/json",
        "tcp://me:s3cret%zz@h:1/amps/json",
        "tcp://me:s3:cret%@h:1/amps/json",
        "tcp://me:s3cret/amps/json",
        "tcp://me:s3cret:9007/amps/json",
        "me:s3cret@tcp://h:1/amps/json",
    ] {
        let error = error(text);
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(
                !shown.contains("s3") && !shown.contains("cret"),
                "{text}: {shown}"
            );
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_uri_or_an_error(text in ".*", tail in ".*") {
        let _ = text.parse::<Uri>();
        let _ = format!("tcp://{tail}").parse::<Uri>();
    }

    #[test]
    fn what_is_shown_means_the_same(
        host in "[a-z][a-z0-9.]{0,10}", port: u16, kind in "[a-z-]{1,8}", nodelay: bool,
    ) {
        let text = format!("tcp://{host}:{port}/amps/{kind}?tcp_nodelay={nodelay}");
        let uri: Uri = text.parse().unwrap();
        proptest::prop_assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
    }
}
