import ctypes

from lm.parallel import memory


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.use_one_pool()
    memory.give_back()


def test_one_pool_is_asked_for_and_what_is_free_given_back(monkeypatch):
    asked = []

    class Library:
        mallopt = staticmethod(lambda *words: asked.append(words))
        malloc_trim = staticmethod(lambda *words: asked.append(words))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    memory.use_one_pool()
    memory.give_back()
    assert asked == [(-8, 1), (0,)]
