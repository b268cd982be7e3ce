"""English function words by class: short closed lists, so that a rule can say "after a preposition" instead of naming twenty.

No tagger is behind this: a word is looked up, whatever it does in its sentence ("that" is with the pronouns, "to" with the
prepositions). Nouns, verbs and adjectives are open classes and are not told apart.
"""

CLASSES = {
    "article": "a an the",
    "preposition": "about above across after against along among around as at before behind below beneath beside besides"
    " between beyond by despite down during except for from in inside into like near of off on onto out outside over past per"
    " since through throughout till to toward towards under underneath until up upon via with within without",
    "conjunction": "and but or nor yet so because although though while whereas if unless whether than",
    "pronoun": "i me you he him she her it we us they them this that these those who whom which what someone somebody something"
    " anyone anybody anything everyone everybody everything nobody nothing one myself yourself himself herself itself"
    " ourselves themselves there",
    "possessive": "my your his its our their whose mine yours hers ours theirs",
    "auxiliary": "am is are was were be been being do does did have has had having isn't aren't wasn't weren't don't doesn't"
    " didn't haven't hasn't hadn't",
    "modal": "can could may might must shall should will would can't cannot couldn't mustn't shouldn't won't wouldn't",
    "negation": "no not never neither none n't",
    "question word": "how when where why",
    "quantifier": "all any both each every few fewer many more most much several some such another other enough half",
    "number word": "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand"
    " million billion first second third",
    "adverb": "also always already again almost away back even ever far here however just later maybe now often once only"
    " perhaps quite rather really soon still then therefore thus together too very well",
}  # fmt: skip
WORD_CLASS = {word: name for name, words in CLASSES.items() for word in words.split()}
PLURALS = {"auxiliary": "auxiliaries", "possessive": "possessives"}


def plural(name: str) -> str:
    """More than one word of a class."""
    return PLURALS.get(name, f"{name}s")
