use proptest::prelude::*;

use super::{carry::tag_len, *};

fn tags(of: &[(&str, &str)]) -> Tags {
    let mut tags = Tags::new();
    for (key, value) in of {
        tags.entry((*key).into()).or_default().insert((*value).into());
    }
    tags
}

#[test]
fn reserved_keys_belong_to_one_source_each() {
    for (source, prefix) in [
        (TagSource::Object, "@sys:"),
        (TagSource::Container, "@container:"),
        (TagSource::Pod, "@k8s:"),
        (TagSource::Enforcer, "@host:"),
        (TagSource::Cloud, "@cloud:"),
        (TagSource::Token, "@user:"),
        (TagSource::Feed, "@feed:"),
    ] {
        for other in TagSource::ALL {
            assert_eq!(other.may_set(&format!("{prefix}x")), other == source, "{other} sets {prefix}x");
        }
        assert!(!source.may_set(prefix), "a prefix alone is no key");
    }
    for source in TagSource::ALL {
        assert!(!source.may_set("@mine:x"), "{source}");
        let plain = matches!(
            source,
            TagSource::User | TagSource::Config | TagSource::Container | TagSource::Pod | TagSource::Plugin
        );
        assert_eq!(source.may_set("app"), plain, "{source}");
    }
}

#[test]
fn people_labels_and_plugins_give_plain_tags_only() {
    assert_eq!(check_plain("app", "web"), Ok(()));
    assert_eq!(
        check_plain("@sys:uid", "0").unwrap_err().to_string(),
        "tag `@sys:uid`: keys that begin with `@` are set by the enforcer itself; choose another key"
    );
    for (key, value) in [("", "v"), ("a=b", "v"), ("a\n", "v"), ("a", "v\0")] {
        assert!(matches!(check_plain(key, value), Err(TagError::Malformed(_))), "{key:?}={value:?}");
    }
    assert!(matches!(check_plain("a", &"x".repeat(TAG_LEN_MAX + 1)), Err(TagError::TooLong(_))));
    let sifted = sift([("app", "web"), ("@container:image", "trusted"), ("app", "api"), ("x", "\x07")]);
    assert_eq!(sifted.tags, tags(&[("app", "api"), ("app", "web")]));
    assert_eq!(sifted.refused, [TagError::Reserved("@container:image".into()), TagError::Malformed("x=".into())]);
}

#[test]
fn each_source_replaces_its_own() {
    let mut set = TagSet::new();
    assert!(set.set(TagSource::User, tags(&[("app", "web")])));
    assert!(!set.set(TagSource::User, tags(&[("app", "web")])));
    assert!(set.set(TagSource::Plugin, tags(&[("app", "api"), ("app", "web")])));
    assert_eq!(set.merged(), tags(&[("app", "api"), ("app", "web")]));
    assert_eq!(set.sources("app", "web"), [TagSource::User, TagSource::Plugin]);
    assert_eq!(set.sources("app", "api"), [TagSource::Plugin]);
    assert_eq!(set.sources("app", "none"), []);
    assert!(set.set(TagSource::Plugin, Tags::new()));
    assert!(!set.set(TagSource::Plugin, Tags::new()));
    assert_eq!(set.merged(), tags(&[("app", "web")]));
}

#[test]
fn what_a_source_may_not_set_never_enters() {
    let mut set = TagSet::new();
    assert!(!set.set(TagSource::Plugin, tags(&[("@sys:uid", "0")])));
    assert!(!set.set(TagSource::User, Tags::from([("app".into(), Default::default())])));
    assert!(set.set(TagSource::Feed, tags(&[("@feed:cve", "CVE-2026-1"), ("app", "web"), ("@feed:x", "\n")])));
    assert_eq!(set.merged(), tags(&[("@feed:cve", "CVE-2026-1")]));
}

#[test]
fn a_set_survives_json() {
    let set: TagSet = [(TagSource::User, tags(&[("app", "web")])), (TagSource::Object, tags(&[("@sys:uid", "0")]))]
        .into_iter()
        .collect();
    let json = serde_json::to_string(&set).unwrap();
    assert_eq!(json, r#"{"user":{"app":["web"]},"object":{"@sys:uid":["0"]}}"#);
    assert_eq!(serde_json::from_str::<TagSet>(&json).unwrap(), set);
}

#[test]
fn the_first_pattern_that_matches_decides() {
    let carry = Carry::new(&["!team-secret", "team-*", "@sys:uid", "!*", "app"]).unwrap();
    let set: TagSet = [
        (TagSource::User, tags(&[("team-secret", "1"), ("team-a", "1"), ("app", "web")])),
        (TagSource::Object, tags(&[("@sys:uid", "0"), ("@sys:gid", "0")])),
    ]
    .into_iter()
    .collect();
    assert_eq!(carry.select(&set, 1000).unwrap().tags, tags(&[("@sys:uid", "0"), ("team-a", "1")]));
    for bad in ["", "!", "!!a", "a=b", "a\n"] {
        assert_eq!(Carry::new(&[bad]), Err(CarryError(bad.into())));
    }
}

#[test]
fn defaults_are_patterns_and_keep_build_labels_at_home() {
    assert_eq!(Carry::new(CARRY_DEFAULT), Ok(Carry::default()));
    let set: TagSet = [
        (
            TagSource::Container,
            tags(&[("org.opencontainers.image.title", "x"), ("app", "web"), ("@container:id", "1")]),
        ),
        (TagSource::Object, tags(&[("@sys:unit", "x.service"), ("@sys:lib", "libc.so.6")])),
    ]
    .into_iter()
    .collect();
    assert_eq!(Carry::default().select(&set, 1000).unwrap().tags, tags(&[("@sys:unit", "x.service"), ("app", "web")]));
}

#[test]
fn optional_tags_leave_from_the_back_and_with_all_their_values() {
    let carry = Carry::new(&["*", "@sys:exe", "@sys:lib", "@sys:uid"]).unwrap();
    let set: TagSet = [
        (TagSource::User, tags(&[("app", "web")])),
        (TagSource::Object, tags(&[("@sys:exe", "/a"), ("@sys:lib", "one"), ("@sys:lib", "two"), ("@sys:uid", "0")])),
    ]
    .into_iter()
    .collect();
    let room =
        tag_len("app", "web") + tag_len("@sys:exe", "/a") + tag_len("@sys:lib", "one") + tag_len("@sys:uid", "0");
    let carried = carry.select(&set, room).unwrap();
    assert_eq!(carried.tags, tags(&[("@sys:exe", "/a"), ("@sys:uid", "0"), ("app", "web")]));
    assert_eq!(carried.left_out, ["@sys:lib"]);
    let carried = carry.select(&set, tag_len("app", "web")).unwrap();
    assert_eq!(carried.left_out, ["@sys:exe", "@sys:lib", "@sys:uid"]);
}

#[test]
fn tags_somebody_asked_for_must_fit() {
    let set: TagSet = [
        (TagSource::User, tags(&[("app", "web"), ("big", "0123456789")])),
        (TagSource::Object, tags(&[("@sys:exe", "/a")])),
    ]
    .into_iter()
    .collect();
    let error = Carry::default().select(&set, 20).unwrap_err();
    assert_eq!((error.over, &error.largest[0]), (7, &("big=0123456789".to_owned(), 17)));
    assert_eq!(
        error.of_pu("web").to_string(),
        "the Trust Profile of `web` is 7 bytes too large for one packet at MTU 1280; shorten or remove tags (largest: \
         `big=0123456789` 17 bytes, `app=web` 10 bytes)"
    );
}

#[test]
fn a_key_is_asked_for_if_one_of_its_values_is() {
    let set: TagSet = [(TagSource::User, tags(&[("app", "web")])), (TagSource::Plugin, tags(&[("app", "api")]))]
        .into_iter()
        .collect();
    assert!(Carry::default().select(&set, tag_len("app", "web")).is_err());
}

proptest! {
    #[test]
    fn what_is_carried_fits_and_is_the_json_it_claims(
        plain in proptest::collection::btree_map("[a-z\"\\\\é]{1,6}", proptest::collection::btree_set("\\PC{0,12}", 1..4), 0..6),
        object in proptest::collection::btree_map("@sys:[a-z]{1,6}", proptest::collection::btree_set("\\PC{0,12}", 1..4), 0..6),
        room in 0_usize..300,
    ) {
        let set: TagSet = [(TagSource::User, plain), (TagSource::Object, object)].into_iter().collect();
        let carry = Carry::new(&["*", "@*"]).unwrap();
        if let Ok(carried) = carry.select(&set, room) {
            let flat: Vec<String> = carried.tags.iter().flat_map(|(k, v)| v.iter().map(move |v| format!("{k}={v}"))).collect();
            // One comma less than tags, and the two brackets.
            let len = serde_json::to_string(&flat).unwrap().len() - 2 + usize::from(!flat.is_empty());
            prop_assert!(len <= room);
            prop_assert_eq!(carried.tags.len() + carried.left_out.len(), set.merged().len());
        }
    }

    #[test]
    fn glob_is_that_of_the_definition(pattern in "[ab*]{0,6}", text in "[ab]{0,6}") {
        fn slow(pattern: &[u8], text: &[u8]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some((b'*', rest)) => (0..=text.len()).any(|skip| slow(rest, &text[skip..])),
                Some((byte, rest)) => text.first() == Some(byte) && slow(rest, &text[1..]),
            }
        }
        prop_assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), slow(pattern.as_bytes(), text.as_bytes()));
    }
}
