"""Frames and names of the indirect-object task, one list per split and nothing shared.

[A] and [B] are the two people, [C] the one who is named again. `ood` frames are built differently:
another tense, a question of who owns what, or one sentence instead of two clauses.
"""

FRAMES: dict[str, list[str]] = {
    "discover": [
        "Then, [A] and [B] went to the store. [C] gave a drink to",
        "When [A] and [B] arrived at the garden, [C] handed a flower to",
        "After [A] and [B] left the office, [C] sent a letter to",
        "While [A] and [B] were at the station, [C] gave a ticket to",
        "Yesterday, [A] and [B] met at the museum. [C] showed a painting to",
        "Since [A] and [B] lived near the lake, [C] lent a boat to",
        "In the kitchen, [A] and [B] were cooking. [C] passed a spoon to",
        "As [A] and [B] walked home, [C] offered an apple to",
        "Later, [A] and [B] sat by the fire. [C] told a story to",
        "Once [A] and [B] had finished dinner, [C] brought a cake to",
    ],
    "tune": [
        "Before [A] and [B] took the bus, [C] gave a map to",
        "At the party, [A] and [B] were talking. [C] handed a glass to",
        "When [A] and [B] opened the shop, [C] gave a key to",
        "Because [A] and [B] liked music, [C] bought a guitar for",
        "On the beach, [A] and [B] were resting. [C] threw a ball to",
        "Last night, [A] and [B] played chess. [C] gave a prize to",
    ],
    "confirm": [
        "When [A] and [B] visited the zoo, [C] gave a camera to",
        "After [A] and [B] cleaned the barn, [C] handed a towel to",
        "While [A] and [B] waited in the hall, [C] gave a chair to",
        "At the school, [A] and [B] were studying. [C] lent a pencil to",
        "As [A] and [B] crossed the bridge, [C] passed a rope to",
        "In the library, [A] and [B] were reading. [C] gave a book to",
        "Once [A] and [B] reached the hotel, [C] gave a bag to",
        "On Sunday, [A] and [B] went to church. [C] gave a coin to",
        "When [A] and [B] repaired the car, [C] handed a hammer to",
        "After [A] and [B] watched the film, [C] gave a coat to",
        "In the morning, [A] and [B] drank coffee. [C] passed the milk to",
        "While [A] and [B] painted the wall, [C] gave a brush to",
        "Long ago, [A] and [B] ran a farm. [C] sold a horse to",
        "Before [A] and [B] climbed the hill, [C] gave a jacket to",
        "At the market, [A] and [B] were shopping. [C] gave a basket to",
        "When [A] and [B] joined the club, [C] sent a gift to",
    ],
    "ood": [
        "The lawyer says that [A] and [B] share the money, but [C] always pays it to",
        "There were [A] and [B] in the room, and soon [C] was whispering to",
        "Everyone saw how [A] and [B] argued until [C] said sorry to",
        "It is well known that [A] and [B] are friends, so [C] writes to",
        "Two people, [A] and [B], stood outside; [C] waved to",
        "The prize went to [A] and [B], but [C] left it all to",
        "Nobody believed [A] and [B], although [C] never lied to",
        "Both [A] and [B] will travel soon, so [C] will speak to",
    ],
}

NAMES: dict[str, list[str]] = {
    "discover": ["Mary", "John", "Tom", "James", "Sarah", "Anna", "Paul", "Peter", "Kate", "David"],
    "tune": ["Mark", "Emma", "Jack", "Lucy", "Simon", "Alice", "Henry", "Jane"],
    "confirm": ["Robert", "Laura", "Michael", "Susan", "Adam", "Martin", "Helen", "George", "Rachel", "Andrew"],
    "ood": ["William", "Julia", "Daniel", "Maria", "Richard", "Emily", "Frank", "Rose"],
}

SPLITS = tuple(FRAMES)
