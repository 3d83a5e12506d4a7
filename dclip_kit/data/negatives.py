"""Hard negatives: captions with a word or two exchanged, so that they are no longer true."""

import random
import re

_OPPOSITES = (
    "left/right, above/below, top/bottom, in front of/behind, inside/outside, small/large, "
    "tiny/huge, little/big, short/tall, young/old, black/white, open/closed, two/three, four/five, "
    "man/woman, men/women, boy/girl"
)
_PAIRS = [pair.split("/") for pair in _OPPOSITES.split(", ")]
_OTHER = {word: other for a, b in _PAIRS for word, other in ((a, b), (b, a))}
_PEOPLE = {"man", "woman", "men", "women", "boy", "girl"}
_WORDS = re.compile(rf"\b({'|'.join(_OTHER)})\b", re.IGNORECASE)
# "black and white", "a man and a woman": exchanged, it would still be true.
_JOINED = re.compile(
    "|".join(rf"\b{a}[ -](and|or)[ -](an? |the )?{b}\b" for a, b in _OTHER.items())
)


def make_hard_negative(caption: str) -> str:
    """A caption in which a word means the opposite, such as right for left; "" if there is none.

    Two opposites of one caption are both exchanged: "a small cat and a large dog" gives "a large
    cat and a small dog". Of other words one is chosen by lot, the same whenever a caption is asked
    for.

    Source: our reading of NegCLIP (arXiv 2210.01936), which exchanges words of one kind and needs a
    tagger to know kinds; lists of opposites need none.
    """
    found = {word.lower() for word in _WORDS.findall(caption)}
    # "A man dances with a woman": exchanged, it may still be true.
    found -= {word for word in found if word in _PEOPLE and _OTHER[word] in found}
    if not found or _JOINED.search(caption.lower()):
        return ""
    chosen = random.Random(caption).choice(sorted(found))
    return _WORDS.sub(
        lambda match: (
            _OTHER[match[0].lower()] if match[0].lower() in (chosen, _OTHER[chosen]) else match[0]
        ),
        caption,
    )
