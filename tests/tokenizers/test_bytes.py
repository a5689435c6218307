from lm.tokenizers.bytes import Bytes


def test_ids_are_the_bytes_of_utf8():
    assert Bytes().build().encode("aé") == [0x61, 0xC3, 0xA9]


def test_bytes_that_are_no_text_read_as_the_replacement_character():
    assert Bytes().build().decode([0x61, 0xC3, 0x62]) == "a\ufffdb"
