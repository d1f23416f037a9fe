"""Words for spelling and for talk: common English words by theme, and strings that no language has.

A model can spell a word that it has never seen only if it knows the letters of every piece of it. So the words to
practise on are of many kinds: English words, made-up ones, random letters, and pieces of words glued together.
`any_word` draws them; each word belongs to one split.
"""

import random
import string

from nanochat_hf.data.microworld.world import ANIMALS, JOBS, PEOPLE, PLACES, draw, made_up_word

# What the world of the microworld does not have. Questions about it are answered by saying so.
COUNTRIES = (
    "France Germany Italy Spain Japan China India Brazil Canada Mexico Egypt Kenya Norway Sweden Poland Russia "
    "Turkey Greece Portugal Ireland Scotland England America Australia Austria Switzerland Belgium Denmark "
    "Finland Iceland Korea Vietnam Thailand Indonesia Nigeria Morocco Peru Chile Argentina Cuba Iran Iraq "
    "Israel Ukraine Hungary"
).split()
CITIES = (
    "Paris London Berlin Rome Madrid Tokyo Beijing Moscow Vienna Oslo Cairo Delhi Boston Chicago Sydney Toronto "
    "Lisbon Prague Dublin Athens Amsterdam Hamburg Munich Milan Seattle Texas California Florida Africa Europe "
    "Asia"
).split()
CELEBRITIES = (
    "Einstein Newton Mozart Beethoven Shakespeare Napoleon Caesar Cleopatra Obama Trump Biden Putin Gandhi "
    "Lincoln Picasso Darwin Tesla Messi Ronaldo Beyonce Madonna Elvis Plato Aristotle Galileo Churchill Jesus "
    "Buddha Batman Superman Spiderman Goethe Bach Taylor Swift Elon Musk Harry Potter Marie Curie Ada Lovelace "
    "Alan Turing"
).split()
BRANDS = (
    "Google Apple Microsoft Amazon Facebook Twitter Netflix YouTube Instagram Tesla Samsung Toyota Nike "
    "Wikipedia Python Java JavaScript Linux Windows Android Minecraft Pokemon Bitcoin ChatGPT OpenAI Claude "
    "Gemini Siri Alexa"
).split()
CREATURES = (
    "cat dog horse cow pig sheep goat chicken duck goose elephant giraffe lion tiger bear wolf fox rabbit mouse "
    "rat monkey gorilla zebra camel kangaroo panda koala snake lizard turtle frog shark whale dolphin octopus "
    "spider ant bee butterfly eagle owl penguin parrot dinosaur dragon unicorn crocodile hamster squirrel "
    "hedgehog salmon"
).split()
FOODS = (
    "pizza pasta rice soup salad sandwich burger cheese chocolate cake cookie pancake coffee tea milk juice "
    "water beer wine banana orange lemon strawberry blueberry cherry peach mango grape potato tomato onion "
    "garlic carrot pepper butter sugar salt honey noodles sushi curry steak bacon omelette pudding pie ice "
    "cream breakfast lunch dinner"
).split()
SUBJECTS = (
    "history physics chemistry biology mathematics algebra geometry calculus medicine cancer diabetes headache "
    "fever vaccine virus politics election government democracy war peace religion philosophy psychology "
    "economy money tax stock market business football soccer tennis basketball cricket chess music guitar piano "
    "song movie film book novel poem poetry art painting photography dance theatre fashion travel holiday hotel "
    "airport train bus car bicycle airplane rocket space moon sun star planet earth mars gravity energy "
    "electricity atom molecule cell gene evolution climate weather rain snow storm earthquake volcano ocean "
    "mountain desert island computer internet phone robot software programming algorithm database network "
    "camera television newspaper law police crime prison school university exam homework teacher student "
    "friendship family marriage wedding birthday christmas easter dream sleep health exercise diet yoga dentist "
    "hospital surgery pregnancy language grammar dictionary"
).split()
EVERYDAY = (
    "able about above across actor add afraid after again age air all almost alone along already also always "
    "amazing angry animal another answer anything apartment arm army arrive ask aunt autumn away baby back bad "
    "bag ball bank basket bath beach beautiful because become bed before begin behind believe bell below best "
    "better between big black blanket blood blue board body bone bottle bottom bowl boy brain branch bread "
    "break bridge bright bring broken brother brown brush bucket build burn busy button call can candle cap "
    "capital card careful carry castle catch cent centre chair chance change cheap child church circle city "
    "class clean clear clever clock close cloth cloud coat cold collect colour come common continue cook copy "
    "corner correct cost cotton could count country cousin cover crowd cry cup curtain cut danger dark daughter "
    "day dead dear decide deep describe desk die different difficult dirty doctor door doubt down draw dress "
    "drink drive drop dry during dust each ear early east easy eat edge egg eight either empty end enemy engine "
    "enjoy enough enter equal evening every example excellent except excuse expect explain eye face fact fall "
    "false famous far farm fast father favourite fear feather feel few field fight fill find fine finger finish "
    "fire first fish flag flat floor flower fly follow fool foot forest forget fork forward free fresh friend "
    "front fruit full funny future game garden gate gentle gift girl give glad glass go goal gold good goodbye "
    "grandmother grass great green grey ground group grow guess hair half hammer hand happen happy hard hat "
    "hate head hear heart heavy height hello help here hide high hill hit hold hole home honest hope hot hour "
    "house how hundred hungry hurry hurt husband idea ill important in inside interesting into iron jacket job "
    "join joke jump just keep key kill kind king kitchen knee knife knock know lady lake lamp land large last "
    "late laugh lazy lead leaf learn leave left leg lend length less lesson let letter library lie life light "
    "like line lion lip list listen little live lock lonely long look lose loud love low lucky make man many "
    "map mark matter maybe meal mean meat meet member message middle might million mind minute mirror miss "
    "mistake mix modern moment month more morning mother mouth move much multiply mystery nail name narrow near "
    "neck need neighbour nephew never new news next nice night nine nobody noise none north nose nothing notice "
    "now number object offer office often oil old once only open opposite other outside page pain paint pair "
    "paper parent park part party pass past path pay pen pencil people perfect perhaps person picture piece "
    "pillow pink plan plane plant plate play please pocket point poor popular possible pound power present "
    "president pretty price prince princess problem promise pull pupil purple push put quarter queen question "
    "quick quiet quite race radio raincoat reach read ready real reason receive red remember repeat rest return "
    "rhythm rich ride right ring river road rock roof room rope round rule run sad safe sail same sand save say "
    "science scissors sea season seat second secret see sell send sentence serious seven several shade shadow "
    "shake shape share sharp shelf shine ship shirt shoe shop short should shoulder shout show sick side sign "
    "silver simple since sing sister sit size skin skirt sky slow small smell smile smoke smooth snake soap "
    "sock soft someone something sometimes son soon sorry sound south spell spend spoon sport spring square "
    "stair stamp stand start station stay steal steam stomach stone stop story strange stranger street strong "
    "stupid subtract success such sudden summer supper sure surprise sweet swim table tail take talk tall taste "
    "teach team tear tell terrible test than thank theatre there thick thief thin thing think third thirsty "
    "this thousand three through throw thunder ticket tidy tie time tired together tomorrow tongue tonight tool "
    "tooth touch towel tower town toy trade traffic translate tree trip trouble trousers true trust try twelve "
    "twenty twice uncle under understand until up use useful usual valley vegetable very village visit voice "
    "wait walk wall want warm wash watch wave way weak wear wednesday week weight welcome west wet what wheel "
    "when where which while whisper white who why wide wife wild win wind window winter wish with without woman "
    "wonder wood wool word work world worry worse write wrong year yellow yes yesterday young your zero zoo"
).split()
ENGLISH = tuple(
    dict.fromkeys(
        word.lower() for word in (*COUNTRIES, *CITIES, *CELEBRITIES, *BRANDS, *CREATURES, *FOODS, *SUBJECTS, *EVERYDAY)
    )
)
OF_THE_WORLD = tuple(word.lower() for word in (*PEOPLE, *PLACES, *ANIMALS, *JOBS))

ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kn l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str sw t "
    "th tr tw v w wh y z"
).split()
VOWELS = "a e i o u a e i o u ai au ay ea ee ei ie io oa oo ou ow ue y".split()
CODAS = (
    "b ck ct d ff ft g k l ld lf ll lt m mp n nd ng nk nt p pt r rb rd rk rm rn rry rt s sh ss st t tch th tt x"
).split()
ENDINGS = "er ed ing tion ment ness ly ful less able ous ity ism ist al ance ence ish ive ize ure age ship".split()


def any_word(rng: random.Random, split: str) -> str:
    """Draws a word to spell, in small letters: English, of the microworld, made up, or of random letters."""

    def make(rng: random.Random) -> tuple[tuple, str]:
        text = rng.choices((_english, _syllables, _glued, _letters), weights=(30, 25, 30, 15))[0](rng)
        return ("word", text), text

    return made_up_word(rng, split) if rng.random() < 0.15 else draw(rng, split, make)


def _english(rng: random.Random) -> str:
    return rng.choice(ENGLISH if rng.random() < 0.9 else OF_THE_WORLD)


def _syllables(rng: random.Random) -> str:
    """A word that could be English: one to four syllables, sometimes with an ending."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        parts.append(rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.45 else ""))
    if rng.random() < 0.25:
        parts.append(rng.choice(ENDINGS))
    return "".join(parts)[:15]


def _glued(rng: random.Random) -> str:
    """Pieces of one to three words, which bring pieces of the tokenizer into new company."""
    pieces = []
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        word = rng.choice(ENGLISH)
        start = 0 if rng.random() < 0.4 else rng.randrange(len(word))
        pieces.append(word[start : start + rng.randint(2, 7)])
    return "".join(pieces)[:15]


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 10)))
