"""Ordinary texts on which an edit should change nothing: what damage is measured on, unless a claim brings its own.

They are short statements about unrelated things, each a text of its own, so that one text is one observation.
A claim about a domain these texts belong to, or a model of another language, should bring its own (`neutral`
in the options of its settings).
"""

TEXTS = (
    "The bridge was closed for two weeks because the river had risen.",
    "Water boils at a lower temperature on a high mountain.",
    "She put the keys on the table next to the window and sat down.",
    "The committee will meet again on Thursday to discuss the new budget.",
    "Most bakers let the dough rest for an hour before they shape it.",
    "In 1969 two people walked on the surface of the moon.",
    "The train to the coast leaves every morning at half past seven.",
    "Copper is used for cables because it conducts electricity well.",
    "A square has four sides of equal length and four right angles.",
    "He opened the book at the first page and began to read aloud.",
    "The garden behind the school is looked after by the younger pupils.",
    "Prices of coffee rose again last year after a poor harvest.",
    "To save a file, choose the name of the folder and press enter.",
    "The island can only be reached by boat when the sea is calm.",
    "Light travels faster through air than it does through glass.",
    "The orchestra rehearsed the second movement until late in the evening.",
    "Several streets in the old town are too narrow for a bus.",
    "If you add salt to ice, it melts at a lower temperature.",
    "The museum keeps a collection of clocks from the last three centuries.",
    "Their grandmother taught them how to mend a torn sleeve.",
    "The function returns the number of items in the list.",
    "Bees visit the flowers early in the day, before it gets hot.",
    "The court will announce its decision at the end of the month.",
    "After the storm the road was covered with leaves and branches.",
    "A dozen eggs weigh a little more than half a kilogram.",
    "The old lighthouse has been turned into a small hotel.",
    "Engineers tested the valve at ten times the normal pressure.",
    "Rice is planted in spring and harvested before the first frost.",
    "The letter had been written in blue ink on very thin paper.",
    "Our neighbours paint the fence in a different colour every summer.",
    "The second half of the match was played in heavy rain.",
    "Iron rusts when it is left in damp air for long enough.",
    "The library opens at nine and closes at six on weekdays.",
    "Every planet in the system moves in the same direction around the star.",
    "The price includes breakfast but not the use of the sauna.",
    "A map of the caves hangs on the wall beside the entrance.",
    "The doctor asked how long the cough had lasted.",
    "They mixed sand, cement and water until it was smooth.",
    "The meeting ended early, so we took the long way home.",
    "Wool keeps its warmth even when it is wet.",
)
