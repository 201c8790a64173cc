use super::*;
use crate::facts::Fault;

#[test]
fn an_answer_is_a_map_of_tags() {
    let sifted = parse("p", br#"{"tags": {"owner": "ops", "tier": ["1", "2", "1"], "none": []}}"#).expect("tags");
    assert!(sifted.refused.is_empty());
    let expected: Tags =
        [("owner".to_owned(), ["ops".to_owned()].into()), ("tier".to_owned(), ["1".to_owned(), "2".to_owned()].into())]
            .into();
    assert_eq!(sifted.tags, expected);
}

#[test]
fn reserved_keys_are_left_out_and_told_of() {
    let sifted = parse("p", br#"{"tags": {"@user:sub": "root", "@x": "y", "ok": "yes", "a\nb": "c"}}"#).expect("tags");
    assert_eq!(sifted.tags.keys().collect::<Vec<_>>(), ["ok"]);
    assert_eq!(sifted.refused.len(), 3, "{:?}", sifted.refused);
}

#[test]
fn anything_else_is_an_error_and_no_tags() {
    let many: String = (0..=TAGS_MAX).map(|number| format!("\"k{number}\":\"v\",")).collect();
    for wrong in [
        "",
        "{}",
        "[]",
        "null",
        "tags",
        "{\"tags\":[]}",
        "{\"tags\":{\"a\":1}}",
        "{\"tags\":{\"a\":{\"b\":\"c\"}}}",
        "{\"tags\":{},\"more\":1}",
        "{\"tags\":{}} trailing",
        &format!("{{\"tags\":{{{}}}}}", many.trim_end_matches(',')),
    ] {
        let error = parse("p", wrong.as_bytes()).expect_err(wrong);
        assert_eq!(error.fault, Fault::Malformed, "{wrong}");
        assert!(error.to_string().starts_with("plugin p: "), "{error}");
    }
}
