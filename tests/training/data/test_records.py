"""Template tokens go, and nothing else does; equal prompts have equal keys."""

from __future__ import annotations

import pytest

from training.data.records import Message, Record, prompt_key, question_words, strip_template_tokens


def record(*contents: str, role: str = "user") -> Record:
    return Record("r", tuple(Message(role, content) for content in contents), "answer")


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>", "hi\nyes"),
        ("<|im_start|>assistant", ""),
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST] yes </s>", " Be brief.\n\n\nhi  yes "),
        ("<s>[INST] hi [/INST] yes </s><s>[INST] more [/INST]", " hi  yes  more "),
        ("[INST]hi[/INST]", "hi"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "hi"),
        ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "hi\n"),
        ("<|system|>\nBe brief.</s>\n<|user|>\nhi</s>\n<|assistant|>\n", "Be brief.\nhi\n"),
        ("Paris.</s>", "Paris."),
        ("<s>Paris", "Paris"),
        ("Paris.<|endoftext|>", "Paris."),
    ],
)
def test_tokens_of_every_template_go_with_their_headers(text: str, stripped: str) -> None:
    assert strip_template_tokens(text) == stripped


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\tif x < 3:\n\t\treturn x\n    \n",
        "Price: <s>10</s> 8 euros",
        "<s>old</s>",
        "<p>was <s>old</s></p>\n",
        "registers[INST] = table(0)[INST]",
        "a user\nan assistant",
        "std::cout << 3 >> 2;",
        'vocabulary = ["<bos>", "<eos>"]',
    ],
)
def test_code_and_markup_stay_as_they_are(text: str) -> None:
    assert strip_template_tokens(text) == text


def test_indentation_around_a_token_is_kept() -> None:
    code = "    if x:\n        pass<|im_end|>\n\n    else:\n"
    assert strip_template_tokens(code) == code.replace("<|im_end|>", "")


def test_a_token_in_the_middle_of_a_sentence_leaves_its_words() -> None:
    assert strip_template_tokens("say <|im_start|>user name") == "say user name"


def test_prompts_that_differ_in_case_width_or_spaces_have_one_key() -> None:
    assert prompt_key(record("What  is\n a STRASSE?")) == prompt_key(record("ｗhat is a straße?"))
    assert prompt_key(record("a", "b")) != prompt_key(record("b", "a"))
    assert prompt_key(record("What is it?")) != prompt_key(record("What is it"))


def test_system_turns_are_no_words_of_the_question() -> None:
    made = Record("r", (Message("system", "Be brief."), Message("user", "Why  so?")), "answer")
    assert question_words(made) == ["why", "so?"]
    assert prompt_key(made) == "be brief. why so?"
