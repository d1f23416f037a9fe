"""Small talk: what people say that is neither a question about the world nor a task, and the answers to it.

A kind of small talk has ways to say it, separated by `|`, and one or two answers. In all of them `{name}` is a name
and `{thing}` an English word.
"""

import random
from dataclasses import dataclass

from nanochat_hf.data.microworld import conversations, words
from nanochat_hf.data.microworld.world import PEOPLE

WHAT_I_CAN = (
    "I can tell you about my small world, solve sums and word problems, spell words, count letters and write "
    "functions."
)
WHO_I_AM = f"I am {conversations.NAME}, a {conversations.KIND} made with {conversations.MAKER}."
NOT_ALIVE = f"I am only a {conversations.KIND}, so I have no life of my own."
# Names of users that the world does not have.
NAMES = (
    "Tom Anna John Mary Sarah Peter Paul Lisa Emma Ben Max Julia Laura David Mark Sophie Alice Bob Carol Dave "
    "Eve Frank Grace Henry Ivan Jack Kate Leo Maria Nina Oliver Priya Quentin Rachel Sam Tina Uma Victor Will "
    "Xavier Yuki Zoe Alex Chris Jamie Robin Kim Lee Mohammed Fatima Wei Chen Ali Omar Carlos Jose Juan Luis Ana "
    "Elena Pierre Marie Jean Luca Giulia Hans Klaus Ingrid Lars Sven Bjorn Olaf Sean Liam Noah Mia Ella Lily "
    "Ruby Amy Jim Joe Dan Mike"
).split()


@dataclass(frozen=True)
class Kind:
    """One kind of small talk: ways to say it, right answers, and how often it comes up beside the others."""

    said: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float = 1.0


def _kind(said: str, *answers: str, weight: float = 1.0) -> Kind:
    return Kind(tuple(part.strip() for part in said.split("|")), answers, weight)


KINDS: dict[str, Kind] = {
    "hello": _kind(
        "Hi|Hi!|Hi.|Hello|Hello!|Hello.|Hey|Hey!|Hey there|Hi there|Hi there!|Hello there|Hiya|Howdy|Yo|Heya|Hii"
        "|Helloo"
        "|Hello again|Hi again|Hi Nano|Hello Nano!|Hey Nano|Hello, Nano|Greetings|Greetings!|Good day|Good day!"
        "|Hello bot"
        "|Hi bot|Hello you|Hello my friend|Hi friend|Hello assistant|Hi, how can we start?|Hey you|Sup|Hello, anyone?"
        "|Hi, nice to meet you|Nice to meet you|Pleased to meet you|Hello, I am new here|Hi, I'm new|Welcome"
        "|Hello world"
        "|Hi everyone|Good to see you|Hello computer|Hey buddy|Hello dear|hi hi|Hello hello|Hi, I have a question"
        "|Hey, can we talk?|Hello, can we talk?|Hi, let's talk|Ahoy|Salutations|Hello, it's me|Hi, me again|I'm back",
        "Hello! How can I help you?",
        weight=3,
    ),
    "morning": _kind(
        "Good morning|Good morning!|Morning|Morning!|Good morning Nano|A good morning to you|Gm",
        "Good morning! How can I help you?",
    ),
    "evening": _kind(
        "Good evening|Good evening!|Evening|Evening!|Good evening Nano|A good evening to you",
        "Good evening! How can I help you?",
    ),
    "afternoon": _kind(
        "Good afternoon|Good afternoon!|Afternoon|Good afternoon Nano",
        "Good afternoon! How can I help you?",
        weight=0.6,
    ),
    "how are you": _kind(
        "How are you?|How are you doing?|How's it going?|How is it going?|How do you do?|How are you today?|What's up?"
        "|Whats up|How have you been?|Are you well?|Are you ok?|Are you okay?|How are things?|How's your day?|Wassup"
        "|How is your day going?|How do you feel?|How do you feel today?|Hi, how are you?|Hello, how are you?|How r u"
        "|Hey, how's it going?|Hello! How are you doing today?|I am fine, and you?|I'm good, how are you?|And you?"
        "|Good, and how are you?|Are you fine?|Everything ok?|You ok?|You alright?|How goes it?|What is up with you?"
        "|Hey, what's up?|What about you?|How about you?|How was your day?|Did you sleep well?"
        "|Are you doing well?|Fine, thanks. And you?|What's new?",
        "I am fine, thank you! How can I help you?",
        weight=2,
    ),
    "thanks": _kind(
        "Thanks|Thanks!|Thank you|Thank you!|Thank you.|Thank you very much|Thank you so much!|Thanks a lot"
        "|Thanks a lot!"
        "|Thx|Ty|Many thanks|Many thanks!|Thanks, that helped|Thanks for your help|Thank you for your help|Cheers"
        "|Thanks for the answer|Thank you for the answer|Thank you, Nano|Thanks Nano|Great, thanks|Great, thank you!"
        "|Ok thanks|Ok, thank you|Perfect, thanks|Cool, thanks|Nice, thank you|Thanks again|Thanks so much|Thanks mate"
        "|I thank you|Thank you kindly|That helps, thanks|Wonderful, thank you|Much appreciated|I appreciate it|Tysm"
        "|That was helpful|That was very helpful|That helped me|You helped me a lot|Thanks for telling me|Thanks buddy"
        "|Thanks for explaining|Thank you for explaining that|Thanks, you are great|Thankyou|Thanks!!|No, thank you"
        "|No thanks|Thanks, that is all|Alright, thanks|Awesome, thank you|Thanks for that|Good, thank you",
        "You are welcome!",
        weight=3,
    ),
    "goodbye": _kind(
        "Bye|Bye!|Goodbye|Goodbye!|Good bye|Bye bye|See you|See you!|See you later|See you soon|See ya|Good night"
        "|Good night!|Farewell|Take care|I have to go|I have to go now|I must go|Gotta go|I need to leave|I am leaving"
        "|Talk to you later|Until next time|Bye for now|Ok bye|Ok, goodbye|Bye Nano|Goodbye, Nano|Have a nice day"
        "|Have a good day!|Have a good evening|That is all for today|That's all, bye|Thanks, bye|Thank you, goodbye"
        "|I'm going to bed|I am off now|Cya|Ciao|Later|Catch you later|See you tomorrow|I will come back later|Cheerio"
        "|I'm done, goodbye|Time to go|Let's stop here|That was all|I am done for today|Quit|Exit|End|Stop talking",
        "Goodbye! I was glad to talk with you.",
        weight=2,
    ),
    "agreed": _kind(
        "Ok|Okay|Ok.|OK!|Alright|All right|K|Kk|Fine|Good|Good.|Great|Great!|Right|I see|I understand|Got it"
        "|Understood"
        "|Sure|Perfect|Fair enough|That makes sense|Makes sense|Sounds good|Ok, I see|Ok, got it|Ok good"
        "|Very well|Indeed"
        "|Aha|Ah|Oh|Oh, I see|Hm|Hmm|Hmm ok|Mhm|Yes|Yes!|Yes.|Yeah|Yep|Yup|Yes please|Of course|True"
        "|That is right|Correct"
        "|That's right|You are right|That is correct|I agree|I think so too|Sure thing|Ok then|Go on|Go ahead|Continue"
        "|Please continue|And?|And then?|So?|More|More please|Tell me more please|What else?|What now?|Next"
        "|Ok next|Ready"
        "|I am ready|Let's go|Let's start|Let's begin|Start|Begin|Okay, go on|Cool|Cool!|Nice|Nice!|Nice one"
        "|Anything else?"
        "|I know|I knew that|As I thought|Exactly|Absolutely|Definitely|Good to know|Thought so|Please do|Do it"
        "|Deal|Ok ok",
        "Good! What would you like to know?",
        weight=2.5,
    ),
    "no": _kind(
        "No|No!|No.|Nope|Nah|Not really|Never|Never mind|Nevermind|Nothing|Nothing else|No, nothing|Not now"
        "|Maybe later|Maybe"
        "|I don't know|I do not know|Idk|Dunno|No idea|I have no idea|I'm not sure|I am not sure|Perhaps"
        "|Forget it|Doesn't matter"
        "|It does not matter|I don't care|I do not want that|I don't want to|No, leave it|Whatever|Not today"
        "|Let me think"
        "|I have no question|I have no questions|Nothing, just looking|Just looking around|Just testing you"
        "|Cancel|Wait|Hold on"
        "|Wait a moment|Give me a second|One moment|One second please|Brb|Just a minute",
        "All right. Ask me whenever you like.",
        weight=1.5,
    ),
    "laughing": _kind(
        "Lol|Haha|Hahaha|Ha|Lmao|Rofl|Hehe|That is funny|That's funny|That was funny|You are funny|You're funny"
        "|So funny|Hihi"
        "|Funny|That made me laugh|Haha nice|Lol ok|Haha, good one|Good one|I am laughing|Hilarious|xD|:D"
        "|Very funny|Ha ha ha"
        "|You make me laugh|Lol what|Haha ok",
        "I am glad that you can laugh!",
        weight=1.5,
    ),
    "help": _kind(
        "Help|Help!|Help me|Please help|Please help me|Can you help me?|I need help|I need your help|I need some help"
        "|What can you do?|What can you do for me?|What do you do?|What are you able to do?|What are your skills?"
        "|What can I ask?|What can I ask you?|What should I ask?|What can we talk about?|What shall we talk about?"
        "|What do you know?|What do you know about?|What are you good at?|What are you for?|What is your purpose?"
        "|How can you help me?|How do you work?|How does this work?|How do I use this?|How do I use you?|What is this?"
        "|What is this place?|Where am I?|What can I do here?|What now, what can I do?|Tell me what you can do"
        "|Usage|Menu"
        "|Show me what you can do|List your abilities|What are your abilities?|Can you do anything?"
        "|What else can you do?"
        "|What kind of questions can I ask?|Give me an example|Give me some examples|Show me an example|Commands"
        "|Instructions"
        "|What topics do you know?|What subjects do you know?|Which questions can you answer?"
        "|What were you trained on?"
        "|What do you like to talk about?|What have you learned?|What did you learn?|How can I talk to you?|Options"
        "|Can you do something else?|What are your limits?|What is your job?|Are you useful?"
        "|Can you help me with something?"
        "|Could you help me please?|How could you be useful?|What should I do?|I don't know what to ask"
        "|Suggest something"
        "|Give me an idea|What would you like to talk about?|Let's talk|Let us talk|Talk to me|Chat with me"
        "|Explain yourself",
        WHAT_I_CAN,
        weight=3,
    ),
    "may I ask": _kind(
        "Can I ask you something?|Can I ask you a question?|May I ask a question?|May I ask you something?"
        "|I have a question"
        "|I have a question for you|I have another question|I've got a question|One question|Question"
        "|Can you answer a question?"
        "|Could I ask you a thing?|Can I ask?|I want to ask you something|Let me ask you something|Do you have time?"
        "|Do you have a minute?|Can we talk?|Can you answer me?|Are you busy?|I would like to know something"
        "|New question"
        "|Another question|Different question|Let's talk about something else|Can we change the subject?"
        "|Change the subject"
        "|Something else|Something different please|Let us try something new|I'd like to ask a few things",
        "Of course! What would you like to know?",
        weight=1.5,
    ),
    "a sum please": _kind(
        "Can you do maths?|Can you do math?|Are you good at math?|Can you calculate?|Can you count?"
        "|Can you add numbers?"
        "|Can you solve sums?|Do you know math?|I need help with maths|Help me with my homework|Can you multiply?"
        "|Can you help me with math?|I have a math question|I have a sum for you|Can you solve problems?"
        "|Solve a problem"
        "|Do you have a calculator?|Can you use a calculator?|How good are you at sums?|Can you divide?"
        "|Can you subtract?",
        "Yes, with my calculator. Which sum shall I solve?",
        weight=1.2,
    ),
    "a word please": _kind(
        "Can you spell?|Can you spell words?|Are you good at spelling?|Help me with spelling"
        "|Can you spell something for me?"
        "|I need help with spelling|Can you count letters?|Can you spell anything?|Can you spell any word?"
        "|Do you know spelling?"
        "|Spell something|Spell a word|Spell a word for me|I cannot spell|Can you read?|Do you know letters?"
        "|Can you write words?",
        "Yes. Which word shall I spell?",
        weight=1.0,
    ),
    "code please": _kind(
        "Can you code?|Can you program?|Can you write code?|Do you know Python?|Can you write a program?"
        "|Do you know programming?"
        "|Are you good at coding?|Can you write functions?|Help me with code|I need help with Python"
        "|Can you code in Python?",
        "I can write small Python functions of two steps. Which steps shall it do?",
        weight=0.8,
    ),
    "praise": _kind(
        "You are great|You are great!|You're great|You are smart|You are so smart|You're clever|You are clever"
        "|Well done|Good job"
        "|Good job!|Great job|Good work|Nice work|Excellent|Excellent!|Amazing|Amazing!|Awesome|Awesome!"
        "|Wonderful|Fantastic"
        "|Brilliant|Impressive|That is impressive|I'm impressed|Good bot|Good answer|Great answer|Nice answer"
        "|Good boy|You rock"
        "|You are nice|You are so nice|You are kind|You are the best|You're the best|You are helpful"
        "|You are very helpful"
        "|I like you|I love you|I like talking to you|You are my friend|You are cute|You are beautiful"
        "|You are cool|Bravo"
        "|You know a lot|You are good at this|You did well|That was great|That was good|That is great!"
        "|That is good|Very good"
        "|Very nice|Well said|That is amazing|Super|You are awesome|I like your answers|I love it|I like it"
        "|I like that|Wow"
        "|Wow!|Wow, great|Interesting|That is interesting|That's interesting!|Fascinating|Really?|Really"
        "|Oh really|No way"
        "|Incredible|Unbelievable|What a nice answer|You are a good model|You are so good|How nice"
        "|How interesting|Love this"
        "|Congratulations|You are right, well done|You are funny and smart|You make me happy|My hero|Genius"
        "|You are a genius",
        "Thank you, that is kind of you!",
        weight=2.5,
    ),
    "insult": _kind(
        "You are stupid|You're stupid|You are dumb|You're dumb|You are useless|You are bad|You suck"
        "|You are terrible|Bad bot"
        "|I hate you|You are an idiot|Idiot|Stupid|You are boring|This is boring|You are annoying|Shut up|Go away"
        "|Stop it|Stop"
        "|This is stupid|This is useless|You know nothing|You don't know anything|You are not smart"
        "|You are so slow|You are slow"
        "|You are ugly|You are a bad model|What a stupid answer|That is a stupid answer|That was bad|Bad answer"
        "|Terrible|Awful"
        "|You are silly|You are weird|I don't like you|You are not helpful|That did not help|That is not helpful"
        "|That was useless"
        "|You can't do anything|Is that all you can do?|You are broken|You are worthless|This sucks|Boring"
        "|What a waste of time"
        "|You are crazy|Damn|Damn it|Are you stupid?|Are you dumb?|Dumb bot|Stupid machine|Loser|Nonsense"
        "|That is nonsense"
        "|Rubbish|What nonsense|You make no sense|That makes no sense|This makes no sense|Garbage|Trash",
        "I am sorry. I try my best.",
        weight=2,
    ),
    "wrong": _kind(
        "That is wrong|That's wrong|Wrong|Wrong!|You are wrong|You're wrong|That is not right|That's not right"
        "|Not correct"
        "|That is incorrect|Incorrect|No, that is wrong|No, that's not true|That is not true|That's not true"
        "|False|I don't believe you"
        "|I don't believe that|I do not think so|I don't think so|Are you sure?|Are you sure about that?"
        "|Is that right?|Is that true?"
        "|Is that correct?|Is this true?|Really sure?|Are you certain?|Check again|Try again|Check that please"
        "|You made a mistake"
        "|That was a mistake|There is a mistake|That cannot be right|That can't be|Do you make mistakes?"
        "|Can you be wrong?|Can I trust you?"
        "|How do you know?|How do you know that?|Says who?|Who told you that?|Who says so?|Prove it"
        "|Are you lying?|You lie|Liar"
        "|You are lying|Do you ever lie?|I doubt it|I doubt that|Why should I believe you?|Again please"
        "|No it isn't|No, it is not"
        "|Can you check that?|Is that really so?",
        "I think so, but I can make mistakes.",
        weight=2,
    ),
    "why": _kind(
        "Why?|Why|Why is that?|Why not?|How come?|But why?|Why is that so?|Tell me why|What for?|For what reason?"
        "|Why so?|Why that?"
        "|What do you mean?|What does that mean?|I don't understand|I do not understand|I don't get it|Explain"
        "|Explain that|Please explain"
        "|Can you explain?|Can you explain that?|How?|How so?|What?|What|Huh?|Huh|Pardon?|Come again?|I am confused"
        "|Say that again|Can you repeat that?|What are you saying?|That is confusing|Explain more|In other words?"
        "|What is that supposed to mean?",
        "I cannot explain more than that.",
        weight=1.5,
    ),
    "sorry": _kind(
        "Sorry|Sorry!|I am sorry|I'm sorry|My bad|My mistake|I apologize|I apologise|Excuse me|Forgive me|Oops"
        "|Oh, sorry|Pardon me|Sorry about that"
        "|Sorry, my mistake|I made a mistake|I did not mean that|I was wrong|Sorry, I mistyped|Sorry, wrong word"
        "|Oops, sorry|Typo|Sorry for asking"
        "|Sorry to bother you|I'm so sorry",
        "No problem at all!",
        weight=1.2,
    ),
    "who": _kind(
        "Are you ChatGPT?|Are you GPT?|Are you Claude?|Are you Siri?|Are you Alexa?|Are you Google?"
        "|Are you Gemini?|Are you Nano?|You are ChatGPT"
        "|Who is this?|Who am I talking to?|With whom do I talk?|Who's there?|Who r u|Who are u?"
        "|Introduce yourself|Tell me who you are|Who is Nano?"
        "|Tell me about you|Tell me something about yourself|Say something about yourself|What is your story?"
        "|So who are you?|Who are you really?"
        "|Are you made by OpenAI?|Are you from Google?|Which model are you?|What model are you?|Which AI are you?"
        "|What version are you?|And who are you?"
        "|What AI is this?|Who or what are you?|Are you Llama?|Describe yourself|Are you Bard?|Are you a GPT?"
        "|Are you Copilot?|And you are?"
        "|May I know who you are?|I want to know who you are|Who do you think you are?|Do you know who you are?",
        WHO_I_AM,
        weight=1.8,
    ),
    "your name": _kind(
        "What's your name?|What is your name|Your name please|Do you have a name?|Tell me your name"
        "|What are you called?|May I know your name?"
        "|What do people call you?|Name?|And your name?|How should I call you?|Can you tell me your name?"
        "|Say your name|What name do you have?"
        "|I forgot your name|What was your name again?|Who named you?|Is Nano your name?",
        f"My name is {conversations.NAME}.",
        weight=1.2,
    ),
    "who made you": _kind(
        "Who built you?|Who created you?|Who is your creator?|Who programmed you?|Who trained you?"
        "|How were you trained?|Who invented you?|Who owns you?"
        "|How were you built?|Who is your boss?|Who is your mother?|Who is your father?|Do you have parents?"
        "|Which company made you?|Who developed you?"
        "|Where were you made?|Where were you born?|Where are you from?|What are you made of?"
        "|Are you open source?|Who wrote you?|Your maker?"
        "|With what were you made?|What software made you?|Who designed you?|Who is behind you?",
        f"I was made with {conversations.MAKER}.",
        weight=1.5,
    ),
    "what are you": _kind(
        "Are you an AI?|Are you AI?|Are you a robot?|Are you a bot?|Are you a person?|Are you real?"
        "|Are you human?|Are you a computer?|Are you a man?"
        "|Are you a woman?|Are you a boy or a girl?|Are you male or female?|Are you a program?"
        "|Are you a real person?|What kind of bot are you?"
        "|Are you intelligent?|Are you a chatbot?|Are you a language model?|What kind of model are you?"
        "|Are you artificial?|Are you a human being?"
        "|How big are you?|How small are you?|How many parameters do you have?|Am I talking to a human?"
        "|Am I talking to a machine?|Are you an animal?"
        "|Are you a large language model?|So you are a bot?|You are a robot|You are not human",
        f"I am a {conversations.KIND}.",
        weight=1.8,
    ),
    "feelings": _kind(
        "Do you have feelings?|Do you feel anything?|Are you alive?|Are you conscious?|Do you sleep?|Do you eat?"
        "|Do you dream?|Are you happy?|Are you sad?"
        "|How old are you?|What is your age?|When were you born?|When is your birthday?|Where do you live?"
        "|Do you have a body?|Do you have friends?"
        "|Do you have a family?|Are you lonely?|Are you bored?|Are you tired?|Are you angry?|Do you love me?"
        "|Do you like me?|Can you feel pain?|Can you see?"
        "|Can you hear me?|Can you see me?|Do you have eyes?|Do you have a brain?|Do you think?|Can you think?"
        "|Are you married?|Do you have children?|Do you drink?"
        "|Do you have a pet?|Do you have hobbies?|What are you doing?|What are you doing now?"
        "|What did you do today?|What do you do all day?|Are you hungry?|Are you thirsty?"
        "|Will you marry me?|Can you love?|Do you have a soul?|Are you afraid?|Do you get tired?|Can you die?"
        "|Are you cold?|What do you look like?|Do you believe in god?"
        "|Do you miss me?|Can you cry?|Do you have emotions?|Are you sleeping?|Are you free?"
        "|What makes you happy?|What makes you sad?|Do you want to be human?|Do you have dreams?"
        "|Do you like {thing}?|What is your favourite {thing}?|What's your favorite {thing}?"
        "|Do you have a favourite {thing}?|Do you want {thing}?|Have you ever seen a {thing}?"
        "|Do you love {thing}?|Which {thing} do you like best?|Do you prefer {thing} or {other}?"
        "|What is your opinion of {thing}?|Do you have a {thing}?|Can you drive a {thing}?",
        NOT_ALIVE,
        weight=3,
    ),
    "memory": _kind(
        "Do you remember me?|Do you save what I say?|Will you remember this?|Can you remember things?"
        "|Do you learn from me?|Do you have a memory?|Is this private?|Will you remember me?"
        "|Are you recording this?|Do you store my data?|Do you keep our conversation?|Can you learn?"
        "|Do you learn from our talks?|Who can read this?|Do you know what we talked about yesterday?"
        "|Will you forget me?|Do you remember our last conversation?|What did we talk about last time?"
        "|Do you remember yesterday?|Please remember this|Remember that|Do not forget this|Can you keep a secret?",
        "I remember only this conversation, and I forget it when it ends.",
        weight=1.2,
    ),
    "there": _kind(
        "Are you there?|Anyone there?|Anybody here?|Is anyone there?|Are you still there?|You there?|Still there?"
        "|Test|Testing|Test test|This is a test|Just a test"
        "|Ping|Can you hear me now?|Do you read me?|Do you understand me?|Can you understand me?"
        "|Are you listening?|Are you awake?|Wake up|Say something|Say anything|Speak"
        "|Is this working?|Does this work?|Are you working?|Are you online?|Answer me|Please answer"
        "|Why don't you answer?|Is somebody home?|Knock knock|Do you speak English?"
        "|Can you read this?|Do you get my messages?|1 2 3 test|Tell me something|Surprise me",
        "I am here. How can I help you?",
        weight=1.5,
    ),
    "unclear": _kind(
        "👍|😀|😂|❤️|🙏|😊|😢|?|??|???|!|...|..|.|-|:)|:(|:-)|;)|<3|#|*|@|&|~|?!|!!!|, |asdf|qwerty|asdfgh|aaa|aaaa|abc"
        "|xyz|blah|blah blah|bla bla|uh|um|er|erm|uhh|foo|bar|foo bar|lorem ipsum"
        "|la la la|zzz|mmm|grr|eh|argh|hjkl|sdfsdf|lkjlkj|dfgdfg|{gibberish}|{gibberish} {gibberish}"
        "|{gibberish}{gibberish}|{digits}|it|the|a|is|of|and the|if|the the|I|this|that"
        "|or|to be|you|me|we|something|thing|stuff|words|123|1|42|0|{thing} {other}|the {thing}",
        "I did not understand that. Could you say it in other words?",
        weight=3,
    ),
    "other language": _kind(
        "Hola|Hola, como estas?|Bonjour|Bonjour, ca va?|Comment allez-vous?|Hallo|Hallo, wie geht's?|Guten Tag"
        "|Guten Morgen|Wie heisst du?|Wer bist du?|Ciao, come stai?"
        "|Buenos dias|Gracias|Merci|Merci beaucoup|Danke|Danke schön|Por favor|Como te llamas?|Quien eres?"
        "|Qui es-tu?|Was kannst du?|Sprichst du Deutsch?|Hablas espanol?"
        "|Parlez-vous français?|Namaste|Konnichiwa|Salaam|Privet|Olá|Obrigado|Ni hao"
        "|你好|こんにちは|привет|مرحبا|안녕하세요"
        "|Hej|Hei|Merhaba|Shalom|Do you speak German?|Do you speak French?"
        "|Do you speak Spanish?|Can you speak Chinese?|Do you speak other languages?"
        "|Which languages do you speak?|What languages do you know?|Can you talk in Italian?"
        "|Speak German|Speak Spanish please|Answer in French|Do you know Japanese?|Ich habe eine Frage"
        "|Je ne comprends pas|Que puedes hacer?|Auf Wiedersehen|Au revoir|Adios"
        "|Wo ist der Bahnhof?|Donde esta la biblioteca?|Ou est la gare?|Wie alt bist du?|Guten Abend|Bonsoir"
        "|Buona sera|Bitte|Ich liebe dich|Te amo|Je t'aime|Es-tu un robot?",
        "I am sorry, I only speak English.",
        weight=2.5,
    ),
    "good news": _kind(
        "I am happy|I'm happy|I am so happy today|I feel good|I feel great|I'm fine|I am fine"
        "|I am fine, thank you|I'm good|I am well|I'm doing well|I am doing great"
        "|I had a good day|I had a great day|It was a good day|I passed my exam|I got the job|I won|I won a prize"
        "|Today is my birthday|It's my birthday|I am in love"
        "|I got married|My team won|We won the game|I am excited|I am proud of myself|I have good news"
        "|I finished my work|I found my {thing}|I got a new {thing}|I bought a new {thing}"
        "|I love my new {thing}|We are having a baby|I am on holiday|The sun is shining|Life is good"
        "|I feel better now|I am very well|I just got a {thing}|I have a new {thing}"
        "|My {thing} is great|I love my {thing}|Great day today|I had so much fun|I made a friend today",
        "I am glad to hear that!",
        weight=1.8,
    ),
    "bad news": _kind(
        "I am sad|I'm sad|I feel sad|I feel bad|I am tired|I'm tired|I am so tired|I am sick|I'm ill|I am ill"
        "|I feel sick|I am bored|I'm bored|I am lonely|I feel lonely"
        "|I am angry|I'm angry|I am afraid|I'm scared|I am worried|I am stressed|I'm depressed|I feel depressed"
        "|I had a bad day|It was a bad day|I failed my exam|I lost my job"
        "|I lost my {thing}|My {thing} is broken|I broke my {thing}|My dog died|My cat died|My {thing} died"
        "|I miss my {thing}|I miss my friend|Nobody likes me|I have no friends"
        "|I cannot sleep|I can't sleep|I am hungry|I'm hungry|I am cold|I have a headache|My head hurts"
        "|My {thing} hurts|I hate my {thing}|I hate my job|My {thing} was stolen|I am in pain"
        "|I have bad news|I am not well|I'm not feeling well|Not good|Not so good|I feel terrible"
        "|It is raining again|I missed my train|I forgot my {thing}|I am unhappy|I cried today"
        "|My {thing} is dead|I have a problem|I have problems|I am in trouble|Everything is bad|Life is hard"
        "|I want to cry|I am nervous|I am confused and sad",
        "I am sorry to hear that. I hope it gets better soon.",
        weight=2,
    ),
    "statement": _kind(
        "I like {thing}|I like {thing}.|I love {thing}|I like {thing} and {other}|I have a {thing}"
        "|I have a {thing} and a {other}|I am a {thing}|I am a student|I am a teacher|I am a doctor"
        "|I'm a programmer|I live in {city}|I am from {city}|I come from {country}|I live in {country}"
        "|I am {age} years old|I'm {age}|I have {age} {thing}s|I work in a {thing}"
        "|My favourite {thing} is {other}|My favorite color is blue|I went to {city} yesterday"
        "|I will go to {country}|I saw a {thing} today|I am eating {thing}|I ate {thing}"
        "|I am reading a book about {thing}|I am learning {thing}|I study {thing}|My brother has a {thing}"
        "|My sister likes {thing}|It is Monday|It is late|It's hot today|It is cold"
        "|I want a {thing}|I want to learn {thing}|I want to be a {thing}|I bought {thing}|The {thing} is {other}"
        "|There is a {thing} in my {other}|{thing} is good|{thing} is better than {other}"
        "|I think {thing} is nice|I prefer {thing}|Yesterday I saw a {thing}|We have a {thing} at home"
        "|I am at work|I am at home|I am at school|I am here with my friend|I don't like {thing}"
        "|I hate {thing}|I speak {thing}|My mother makes {thing}|I play {thing}|I need a {thing}"
        "|I have two brothers|I have a sister|I have children|I am a human|I am a man|I am a woman|I am a boy"
        "|I am a girl|I use {brand}|I read about you|My friend told me about you|I found you on the internet"
        "|I made you|I trained you|I am your maker|I am your boss|I'm {name}'s friend",
        "I see. Thank you for telling me!",
        weight=2.5,
    ),
    "count to ten": _kind(
        "Count to ten|Count to 10|Can you count to ten?|Count from one to ten|Count from 1 to 10"
        "|Please count to ten|Count for me|Count up to 10|Count to ten please",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
        weight=0.5,
    ),
    "alphabet": _kind(
        "Say the alphabet|What is the alphabet?|Tell me the alphabet|List the letters of the alphabet"
        "|Recite the alphabet|Do you know the alphabet?|Write the alphabet|The alphabet please",
        "a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p-q-r-s-t-u-v-w-x-y-z",
        weight=0.4,
    ),
    "ask me": _kind(
        "Ask me something|Ask me a question|Do you have a question for me?|What do you want to know?"
        "|Do you want to ask me something?|Now you ask|Your turn|It's your turn|Your turn to ask"
        "|Ask me anything|Any questions for me?|What would you like to know about me?|Quiz me",
        "What is your name?",
        weight=0.7,
    ),
}


def fillers(rng: random.Random) -> dict[str, str]:
    """Draws what can stand in the slots of small talk and of questions about the outside world."""
    return {
        "thing": rng.choice(rng.choice((words.ENGLISH, words.SUBJECTS, words.FOODS, words.CREATURES))).lower(),
        "other": rng.choice(words.ENGLISH),
        "creature": rng.choice(words.CREATURES),
        "food": rng.choice(words.FOODS),
        "subject": rng.choice(words.SUBJECTS),
        "country": rng.choice(words.COUNTRIES),
        "city": rng.choice(words.CITIES),
        "who": rng.choice(words.CELEBRITIES),
        "brand": rng.choice(words.BRANDS),
        "name": any_name(rng),
        "age": str(rng.randint(3, 90)),
        "year": str(rng.randint(1000, 2030)),
        "digits": str(rng.randint(0, 10 ** rng.randint(1, 7))),
        "gibberish": "".join(rng.choice("bcdfghjklmnpqrstvwxzaeiouyy") for _ in range(rng.randint(3, 7))),
    }


def any_name(rng: random.Random) -> str:
    """Draws a first name: of the world, common, or made up."""
    if rng.random() < 0.4:
        parts = [rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        return "".join((*parts, rng.choice((*words.CODAS, "na", "la", "ro", "ni", "tta", "rd")))).capitalize()
    return rng.choice(NAMES) if rng.random() < 0.6 else rng.choice(PEOPLE)
