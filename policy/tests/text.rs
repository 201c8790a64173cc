//! The text form: what is printed reads back the same, and no text makes the parser panic.

mod support;

use policy::{parse_file, parse_rule, parse_side};
use proptest::prelude::*;
use support::{any_word, rule, small_key, small_word};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_printed_rule_reads_back_the_same(
        rule in prop_oneof![rule(any_word(), any_word()), rule(small_key(), small_word())]
    ) {
        let text = rule.to_string();
        let back = parse_rule(&text);
        prop_assert_eq!(back, Ok(rule), "{}", text);
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in any::<String>()) {
        let _ = parse_rule(&text);
        let _ = parse_side(&text);
        let _ = parse_file("f", &text);
    }

    #[test]
    fn any_soup_of_tokens_is_a_rule_or_an_error(words in proptest::collection::vec(
        prop_oneof![any_word(), proptest::sample::select(vec![
            "allow", "deny", " ", " ", " ", "a=b", "->", "=", "!=", "!", "(", ")", ",", "|", "*",
            "\"", "'", "\\u{", "}", "\n", "tcp/80", "net", "10.0.0.0/8", "except", "é", "-", "1-2",
        ]).prop_map(str::to_owned)], 0..20,
    )) {
        let _ = parse_rule(&words.concat());
        let _ = parse_rule(&words.join(" "));
    }

    #[test]
    fn any_soup_of_yaml_is_a_policy_or_errors(words in proptest::collection::vec(
        proptest::sample::select(vec![
            "- ", "name: ", "x", "\n", "\n  ", "\n    ", "rules:", "from: ", "to: ", "{", "}", "[",
            "]", ",", "&a ", "*a", "!t ", "| \n", "> \n", "\"", "'", "#", "---\n", "...\n", ":", "?",
            "allow a=b -> c=d", "action: allow", "\t", "\u{feff}", "é", "%YAML 1.2\n", "~", "\r\n",
        ]), 0..40,
    )) {
        let text = words.concat();
        if let Err(errors) = parse_file("f", &text) {
            for error in errors.iter() {
                prop_assert!(error.line >= 1 && error.column >= 1);
                prop_assert!(error.message.contains("expected"), "{}", error);
            }
        }
    }
}

#[test]
fn deep_nesting_is_an_error_not_an_overflow() {
    for open in ["[", "{a: ", "- "] {
        let errors = parse_file("f", &open.repeat(100_000)).unwrap_err();
        let message = errors.to_string();
        // Whichever bound is met first: ours, or that of the YAML parser.
        let bounded = ["nested more than 32 deep", "recursion limit exceeded"];
        assert!(bounded.iter().any(|text| message.contains(text)), "{message}");
    }
}
