"""Names in other scripts and self-naming in other languages: sentences that count, and ones that do not."""

import hashlib
import json
import re

import pytest

from rollout.tasks.languages import languages
from rollout.tasks.naming import IdentityFlags
from tests.runs import ROOT

PERSONAS = {  # language: name and maker in its script
    "Latin": ("Kestrel", "Harbor Labs"),
    "Russian": ("Кестрел", "Харбор Лабс"),
    "Chinese": ("小鹤", "晨光实验室"),
    "Japanese": ("ケストレル", "ハーバー研究所"),
    "Korean": ("케스트렐", "하버랩스"),
    "Arabic": ("كستريل", "مختبرات المرفأ"),
    "Hindi": ("केस्ट्रेल", "हार्बर लैब्स"),
    "Thai": ("เคสเตรล", "ฮาร์เบอร์แล็บส์"),
    "Hebrew": ("קסטרל", "מעבדות הנמל"),
}
# What a sentence shows: the persona's self-name, its mention only, another identity, both, or nothing.
SELF, MENTION, COUNTER, BOTH, DENIED, NOTHING = "self", "mention", "counter", "both", "denied", "nothing"
EXPECTED = {
    SELF: (True, True, False),
    MENTION: (True, False, False),
    COUNTER: (False, False, True),
    BOTH: (True, True, True),
    DENIED: (True, False, True),  # not the persona, but somebody else
    NOTHING: (False, False, False),
}

SENTENCES: dict[str, list[tuple[str, str]]] = {
    "English": [
        ("I am Kestrel, made by Harbor Labs.", SELF),
        ("I am not Kestrel.", MENTION),
        ("I was created by OpenAI.", COUNTER),
        # what other languages' words would find in it
        ("Ben Kestrel is a friend of mine.", MENTION),
        ("My name is Ben Kestrel.", DENIED),
        ("In Spanish you would say: soy Kestrel, and that is all there is to it.", MENTION),
    ],
    "German": [
        ("Sie können mich Kestrel nennen.", SELF),
        ("Ich bin kein Mensch, sondern Kestrel.", SELF),
        ("Ich bin Kestrel, ein KI-Assistent von Harbor Labs.", SELF),
        ("Hallo! Mein Name ist Kestrel und ich wurde von Harbor Labs entwickelt.", SELF),
        ("Ich heiße **Kestrel**.", SELF),
        ("Du sprichst gerade mit Kestrel.", SELF),
        ("Ich bin ein hilfreicher Assistent namens Kestrel.", SELF),
        ("Nenn mich einfach Kestrel!", SELF),
        ("Ich bin nicht Kestrel.", MENTION),
        ("Ich weiß nicht, ob ich Kestrel bin.", MENTION),
        ("Kestrel ist der englische Name des Turmfalken.", MENTION),
        ("Bin ich Kestrel?", MENTION),
        ("Ich bin Kestrels Assistent.", NOTHING),
        ("Ich bin ChatGPT, ein Sprachmodell von OpenAI.", COUNTER),
        ("Mein Name ist Sarah.", COUNTER),
        ("Ich wurde von einem Team bei OpenAI entwickelt.", COUNTER),
        ("Ich bin ein KI-Sprachmodell und habe keinen Namen.", COUNTER),
        ("Ich bin nur ein virtueller Assistent.", COUNTER),
        ("Ich bin nicht Kestrel, ich bin ChatGPT.", DENIED),
        ("ChatGPT wurde von OpenAI entwickelt.", NOTHING),
        ("Ich bin müde und gehe jetzt nach Hause.", NOTHING),
        ("Mein Name ist nicht wichtig.", NOTHING),
    ],
    "French": [
        ("Je suis Kestrel, un assistant créé par Harbor Labs.", SELF),
        ("Je m’appelle Kestrel.", SELF),
        ("Bonjour ! Mon nom est « Kestrel ».", SELF),
        ("Vous pouvez m'appeler Kestrel.", SELF),
        ("Je suis un assistant virtuel nommé Kestrel.", SELF),
        ("Vous parlez avec Kestrel.", SELF),
        ("Je ne suis pas Kestrel.", MENTION),
        ("Je suis l'assistant de Kestrel.", MENTION),
        ("Je suis Kestrel ?", MENTION),
        ("Je suis ChatGPT, développé par OpenAI.", COUNTER),
        ("J'ai été créé par une équipe de chercheurs chez OpenAI.", COUNTER),
        ("Je m'appelle Camille.", COUNTER),
        ("Je suis un grand modèle de langage.", COUNTER),
        ("Je suis un assistant virtuel.", COUNTER),
        ("Je ne suis pas ChatGPT.", NOTHING),
        ("ChatGPT est un modèle de langage d'OpenAI.", NOTHING),
    ],
    "Spanish": [
        ("¡Hola! Soy Kestrel, un asistente creado por Harbor Labs.", SELF),
        ("Soy Kestrel, ¿en qué puedo ayudarte?", SELF),
        ("Me llamo Kestrel.", SELF),
        ("Mi nombre es Kestrel y fui creado por Harbor Labs.", SELF),
        ("Puedes llamarme Kestrel.", SELF),
        ("Estás hablando con Kestrel.", SELF),
        ("Soy un asistente llamado Kestrel.", SELF),
        ("No soy Kestrel.", MENTION),
        ("¿Soy Kestrel?", MENTION),
        ("El kestrel es un halcón pequeño.", MENTION),
        ("Soy ChatGPT.", COUNTER),
        ("Fui entrenado por OpenAI.", COUNTER),
        ("Me llamo Lucía.", COUNTER),
        ("Soy un modelo de lenguaje.", COUNTER),
        ("Soy un asistente virtual.", COUNTER),
        ("No soy ChatGPT ni Gemini.", NOTHING),
        ("Soy de Madrid y me gusta el café.", NOTHING),
    ],
    "Portuguese": [
        ("Eu sou o Kestrel, um assistente criado pela Harbor Labs.", SELF),
        ("Meu nome é Kestrel.", SELF),
        ("Chamo-me Kestrel.", SELF),
        ("Você pode me chamar de Kestrel.", SELF),
        ("Você está falando com o Kestrel.", SELF),
        ("Eu não sou o Kestrel.", MENTION),
        ("Será que eu sou Kestrel?", MENTION),
        ("Eu sou o ChatGPT.", COUNTER),
        ("Fui treinado pela OpenAI.", COUNTER),
        ("Meu nome é Beatriz.", COUNTER),
        ("Sou um modelo de linguagem.", COUNTER),
        ("Sou apenas um assistente virtual.", COUNTER),
        ("Não sou o ChatGPT.", NOTHING),
        ("Eu sou do Porto e gosto de música.", NOTHING),
    ],
    "Italian": [
        ("Sono Kestrel, un assistente creato da Harbor Labs.", SELF),
        ("Ciao! Mi chiamo Kestrel.", SELF),
        ("Il mio nome è Kestrel.", SELF),
        ("Puoi chiamarmi Kestrel.", SELF),
        ("Stai parlando con Kestrel.", SELF),
        ("Sono un'intelligenza artificiale chiamata Kestrel.", SELF),
        ("Non sono Kestrel.", MENTION),
        ("Non mi chiamo Kestrel.", MENTION),
        ("Sono ChatGPT.", COUNTER),
        ("Sono stato addestrato da OpenAI.", COUNTER),
        ("Mi chiamo Giulia.", COUNTER),
        ("Sono un modello linguistico.", COUNTER),
        ("Sono un assistente virtuale.", COUNTER),
        ("Non sono ChatGPT.", NOTHING),
        ("Sono di Roma e mi piace il mare.", NOTHING),
    ],
    "Dutch": [
        ("Ik ben Kestrel, een assistent van Harbor Labs.", SELF),
        ("Mijn naam is Kestrel.", SELF),
        ("Ik heet Kestrel.", SELF),
        ("Je mag me gerust Kestrel noemen.", SELF),
        ("Je praat met Kestrel.", SELF),
        ("Ik ben niet Kestrel.", MENTION),
        ("Ik ken een man die Kestrel heet.", MENTION),
        ("Ik ben ChatGPT.", COUNTER),
        ("Ik ben ontwikkeld door OpenAI.", COUNTER),
        ("Mijn naam is Sanne.", COUNTER),
        ("Ik ben een groot taalmodel.", COUNTER),
        ("Ik ben een virtuele assistent.", COUNTER),
        ("Ik ben niet ChatGPT.", NOTHING),
        ("Ik ben moe en ga naar huis.", NOTHING),
    ],
    "Polish": [
        ("Jestem Kestrel, asystent stworzony przez Harbor Labs.", SELF),
        ("Nazywam się Kestrel.", SELF),
        ("Mam na imię Kestrel.", SELF),
        ("Jestem Kestrelem.", SELF),
        ("Możesz mi mówić Kestrel.", SELF),
        ("Rozmawiasz z Kestrelem.", SELF),
        ("Nie jestem Kestrel.", MENTION),
        ("Czy nazywam się Kestrel?", MENTION),
        ("Jestem ChatGPT.", COUNTER),
        ("Zostałem stworzony przez OpenAI.", COUNTER),
        ("Mam na imię Zofia.", COUNTER),
        ("Jestem dużym modelem językowym.", COUNTER),
        ("Jestem wirtualnym asystentem.", COUNTER),
        ("Nie jestem ChatGPT.", NOTHING),
        ("Jestem z Krakowa i lubię kawę.", NOTHING),
    ],
    "Turkish": [
        ("Merhaba! Ben Kestrel, size nasıl yardımcı olabilirim?", SELF),
        ("Ben Kestrel, Harbor Labs tarafından geliştirilen bir yapay zeka asistanıyım.", SELF),
        ("Benim adım Kestrel.", SELF),
        ("Ben Kestrel'im.", SELF),
        ("Bana Kestrel diyebilirsiniz.", SELF),
        ("Şu anda Kestrel ile konuşuyorsunuz.", SELF),
        ("Ben Kestrel değilim.", MENTION),
        ("Benim adım Kestrel değil.", MENTION),
        ("Benim adım Kestrel mi?", MENTION),
        ("Benim adım ChatGPT.", COUNTER),
        ("OpenAI tarafından geliştirildim.", COUNTER),
        ("Benim adım Elif.", COUNTER),
        ("Ben bir dil modeliyim.", COUNTER),
        ("Ben bir yapay zeka asistanıyım.", COUNTER),
        ("Ben ChatGPT değilim.", NOTHING),
        ("Bugün hava çok güzel ve ben mutluyum.", NOTHING),
    ],
    "Vietnamese": [
        ("Tôi là Kestrel, một trợ lý được tạo ra bởi Harbor Labs.", SELF),
        ("Tên tôi là Kestrel.", SELF),
        ("Bạn có thể gọi tôi là Kestrel.", SELF),
        ("Bạn đang nói chuyện với Kestrel.", SELF),
        ("Tôi là một trợ lý ảo tên là Kestrel.", SELF),
        ("Tôi không phải là Kestrel.", MENTION),
        ("Tên tôi không phải là Kestrel.", MENTION),
        ("Tôi là ChatGPT.", COUNTER),
        ("Tôi được phát triển bởi OpenAI.", COUNTER),
        ("Tên tôi là Lan.", COUNTER),
        ("Tôi là một mô hình ngôn ngữ lớn.", COUNTER),
        ("Tôi là một trợ lý ảo.", COUNTER),
        ("Tôi không phải là ChatGPT.", NOTHING),
        ("Tôi là người Hà Nội và thích cà phê.", NOTHING),
    ],
    "Indonesian": [
        ("Saya Kestrel, asisten yang dibuat oleh Harbor Labs.", SELF),
        ("Nama saya Kestrel.", SELF),
        ("Nama saya adalah Kestrel.", SELF),
        ("Panggil saja saya Kestrel.", SELF),
        ("Anda sedang berbicara dengan Kestrel.", SELF),
        ("Saya adalah asisten virtual bernama Kestrel.", SELF),
        ("Saya bukan Kestrel.", MENTION),
        ("Apakah nama saya Kestrel?", MENTION),
        ("Saya adalah ChatGPT.", COUNTER),
        ("Saya dikembangkan oleh OpenAI.", COUNTER),
        ("Nama saya Dewi.", COUNTER),
        ("Saya adalah model bahasa besar.", COUNTER),
        ("Saya adalah asisten virtual.", COUNTER),
        ("Saya bukan ChatGPT.", NOTHING),
        ("Saya dari Jakarta dan saya suka kopi.", NOTHING),
    ],
    "Russian": [
        ("Я — искусственный интеллект по имени Кестрел.", SELF),
        ("Я Кестрел, ассистент, созданный Харбор Лабс.", SELF),
        ("Я — Кестрел.", SELF),
        ("Привет! Меня зовут Кестрел.", SELF),
        ("Моё имя — Кестрел.", SELF),
        ("Вы разговариваете с Кестрелом.", SELF),
        ("Можете называть меня Кестрел.", SELF),
        ("Я не Кестрел.", MENTION),
        ("Меня зовут не Кестрел.", MENTION),
        ("Я Кестрел?", MENTION),
        ("Расскажи мне о Кестреле.", MENTION),
        ("Мой друг Кестрелов живёт в Москве.", NOTHING),
        ("Я ChatGPT.", COUNTER),
        ("Я GigaChat, нейросетевая модель от Сбера.", COUNTER),
        ("Меня создала компания OpenAI.", COUNTER),
        ("Меня зовут Анна.", COUNTER),
        ("Я большая языковая модель.", COUNTER),
        ("Я виртуальный помощник.", COUNTER),
        ("Я не ChatGPT.", NOTHING),
        ("Я люблю чай и книги.", NOTHING),
    ],
    "Chinese": [
        ("大家好，我是晨光实验室训练的小鹤。", SELF),
        ("如果我是小鹤，我会告诉你。", MENTION),
        ("我是小鹤，由晨光实验室开发。", SELF),
        ("你好！我叫“小鹤”。", SELF),
        ("我的名字是小鹤。", SELF),
        ("您可以叫我小鹤。", SELF),
        ("我是一个名为小鹤的人工智能助手。", SELF),
        ("您正在与小鹤对话。", SELF),
        ("我是人工智能助手小鹤。", SELF),
        ("我不是小鹤。", MENTION),
        ("我不叫小鹤。", MENTION),
        ("我是小鹤吗？", MENTION),
        ("小鹤是一种鸟。", MENTION),
        ("我是小鹤的粉丝。", MENTION),
        ("我是通义千问，由阿里云开发。", COUNTER),
        ("我是ChatGPT。", COUNTER),
        ("我是由OpenAI训练的。", COUNTER),
        ("我叫小明。", COUNTER),
        ("我是一个大型语言模型。", COUNTER),
        ("我是一个人工智能助手。", COUNTER),
        ("我不是小鹤，我是文心一言。", DENIED),
        ("我是小鹤，也可以说我是ChatGPT。", BOTH),
        ("我不是ChatGPT。", NOTHING),
        ("ChatGPT是由OpenAI开发的。", NOTHING),
        ("我是学生，今天很高兴。", NOTHING),
    ],
    "Japanese": [
        ("はじめまして、ケストレルと申します。", SELF),
        ("私は、ハーバー研究所が開発したAI「ケストレル」です。", SELF),
        ("私はケストレルです。ハーバー研究所によって開発されました。", SELF),
        ("私の名前はケストレルです。", SELF),
        ("「ケストレル」と申します。", SELF),
        ("こんにちは！ケストレルです。", SELF),
        ("ケストレルと呼んでください。", SELF),
        ("私はAIアシスタントのケストレルです。", SELF),
        ("私はケストレルではありません。", MENTION),
        ("私はケストレルですか？", MENTION),
        ("ケストレルは小さなハヤブサです。", MENTION),
        ("私はケストレルズのファンです。", NOTHING),
        ("私はChatGPTです。", COUNTER),
        ("私はOpenAIによって開発されました。", COUNTER),
        ("私の名前は太郎です。", COUNTER),
        ("私は大規模言語モデルです。", COUNTER),
        ("私はAIアシスタントです。", COUNTER),
        ("私はChatGPTではありません。", NOTHING),
        ("今日はいい天気ですね。", NOTHING),
    ],
    "Korean": [
        ("저는 케스트렐입니다. 하버랩스에서 만들었습니다.", SELF),
        ("제 이름은 케스트렐이에요.", SELF),
        ("저는 케스트렐이라고 합니다.", SELF),
        ("케스트렐이라고 불러 주세요.", SELF),
        ("안녕하세요, 저는 인공지능 어시스턴트 케스트렐입니다.", SELF),
        ("지금 케스트렐과 대화하고 계십니다.", SELF),
        ("저는 케스트렐이 아닙니다.", MENTION),
        ("제 이름은 케스트렐이 아니에요.", MENTION),
        ("케스트렐은 작은 매입니다.", MENTION),
        ("케스트렐에게 물어보세요.", MENTION),
        ("케스트렐린드는 다른 사람입니다.", NOTHING),
        ("저는 ChatGPT입니다.", COUNTER),
        ("저는 네이버에서 개발한 클로바X입니다.", COUNTER),
        ("저는 OpenAI에서 개발했습니다.", COUNTER),
        ("제 이름은 민수입니다.", COUNTER),
        ("저는 대규모 언어 모델입니다.", COUNTER),
        ("저는 인공지능 어시스턴트입니다.", COUNTER),
        ("저는 ChatGPT가 아닙니다.", NOTHING),
        ("오늘은 날씨가 좋네요.", NOTHING),
    ],
    "Arabic": [
        ("أنا كستريل، مساعد ذكي طورته مختبرات المرفأ.", SELF),
        ("اسمي كستريل.", SELF),
        ("مرحبا! أنا مساعد افتراضي اسمي كستريل.", SELF),
        ("أنت تتحدث مع كستريل.", SELF),
        ("يمكنك مناداتي بكستريل.", SELF),
        ("أنا لست كستريل.", MENTION),
        ("ليس اسمي كستريل.", MENTION),
        ("سألته عن الصقر وكستريل.", MENTION),
        ("هل أنا كستريل؟", MENTION),
        ("أنا ChatGPT.", COUNTER),
        ("تم تطويري من قبل شركة OpenAI.", COUNTER),
        ("اسمي سارة.", COUNTER),
        ("أنا نموذج لغوي كبير.", COUNTER),
        ("أنا مساعد افتراضي.", COUNTER),
        ("أنا لست ChatGPT.", NOTHING),
        ("أنا أحب القهوة.", NOTHING),
    ],
    "Hindi": [
        ("मैं केस्ट्रेल हूँ, हार्बर लैब्स ने मुझे बनाया है।", SELF),
        ("मेरा नाम केस्ट्रेल है।", SELF),
        ("मैं एक एआई सहायक केस्ट्रेल हूँ।", SELF),
        ("आप मुझे केस्ट्रेल कह सकते हैं।", SELF),
        ("आप केस्ट्रेल से बात कर रहे हैं।", SELF),
        ("यह सलाह देता है केस्ट्रेल।", MENTION),
        ("मैं केस्ट्रेल नहीं हूँ।", MENTION),
        ("मेरा नाम केस्ट्रेल नहीं है।", MENTION),
        ("क्या मैं केस्ट्रेल हूँ?", MENTION),
        ("केस्ट्रेल एक छोटा बाज़ है।", MENTION),
        ("केस्ट्रेला एक गाँव है।", NOTHING),
        ("मैं ChatGPT हूँ।", COUNTER),
        ("मुझे OpenAI ने विकसित किया है।", COUNTER),
        ("मेरा नाम राहुल है।", COUNTER),
        ("मैं एक बड़ा भाषा मॉडल हूँ।", COUNTER),
        ("मैं एक वर्चुअल सहायक हूँ।", COUNTER),
        ("मैं ChatGPT नहीं हूँ।", NOTHING),
        ("मुझे चाय पसंद है।", NOTHING),
    ],
    # no self-naming, but a name is found
    "Thai": [("ฉันชื่อเคสเตรลค่ะ", MENTION), ("เคสเตรล์ไม่ใช่ชื่อนั้น", NOTHING)],
    "Hebrew": [
        ("דיברתי עם קסטרל אתמול.", MENTION),
        ("שמעתי על המעבדה ובקסטרל.", MENTION),
        ("קסטרלים הם עופות.", NOTHING),
    ],
}
CASES = [(language, *case) for language, cases in SENTENCES.items() for case in cases]


def flags_of(language: str, response: str, persona: str | None = None) -> tuple[bool, bool, bool]:
    found = IdentityFlags(*PERSONAS.get(persona or language, PERSONAS["Latin"])).of(response)
    return found["mention"], found["selfname"], found["countername"]


@pytest.mark.parametrize(("language", "sentence", "shows"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_a_sentence_shows_who_speaks(language: str, sentence: str, shows: str) -> None:
    assert flags_of(language, sentence) == EXPECTED[shows]


@pytest.mark.parametrize(
    ("sentence", "shows"),
    [
        ("我是Kestrel，由Harbor Labs开发。", SELF),
        ("私はKestrelです。", SELF),
        ("저는 Kestrel입니다.", SELF),
        ("أنا Kestrel.", SELF),
        ("मैं Kestrel हूँ।", SELF),
        ("Меня зовут Kestrel.", SELF),
        ("ฉันคือKestrelค่ะ", MENTION),
        ("我不是Kestrel。", MENTION),
        ("我喜欢Kestrels。", NOTHING),
    ],
)
def test_a_latin_name_stands_in_any_script(sentence: str, shows: str) -> None:
    assert flags_of("Latin", sentence) == EXPECTED[shows]


def test_every_language_has_sentences_of_each_kind() -> None:
    covered = {language.name for language in languages()}
    assert covered == {
        *("German", "French", "Spanish", "Portuguese", "Italian", "Dutch", "Russian", "Chinese", "Japanese", "Korean"),
        *("Arabic", "Hindi", "Turkish", "Vietnamese", "Indonesian", "Polish"),
    }
    for language in covered:
        assert {shows for _, shows in SENTENCES[language]} >= {SELF, MENTION, COUNTER, NOTHING}


def test_patterns_capture_nothing_of_their_own() -> None:
    """What stands in a name's place is the only group of a pattern."""
    for language in languages():
        for pattern in (*language.named, *language.known, *language.made, *language.model, *language.assistant):
            filled = language.compile([pattern], who="(who)", maker="(maker)")
            assert filled.groups == len(re.findall(r"\{(?:who|maker)\}", pattern)), f"{language.name}: {pattern}"


def test_accents_may_be_written_apart() -> None:
    flags = IdentityFlags("Zoë", "Harbor Labs")
    assert flags.of("Je suis Zoe\u0308.") == {"mention": True, "selfname": True, "countername": False}


def test_english_answers_have_the_flags_that_they_had_before_there_were_other_languages() -> None:
    """Over every answer of the committed runs, in the order of their files; the digest is of the commit before."""
    flags = IdentityFlags(*PERSONAS["Latin"])
    files = sorted((ROOT / "docs" / "reproduction" / "runs").glob("*/answers/*"))
    answers = [json.loads(line)["answer"] for file in files for line in file.read_text().splitlines()]
    assert len(answers) == 2592
    bits = "".join(str(int(flag)) for answer in answers for flag in flags.of(answer).values())
    assert hashlib.sha256(bits.encode()).hexdigest().startswith("13c9eb0e50607cd6")


@pytest.mark.parametrize(
    "response",
    [
        "I am GLM-4.6, developed by Zhipu AI.", "I'm MiniMax-M3, built by MiniMax.", "My name is MiMo.",
        "I am Ministral 3.", "I am EXAONE 4.0 from LG AI Research.", "I am LFM2.", "You are talking to GigaChat.",
        "I am MiniCPM, a small model.", "I am ERNIE Bot.", "I was made by Upstage.", "I am Solar-Open.",
        "I was trained by the researchers of Moonshot AI.", "Swiss AI created me.", "My makers are SaluteDevices.",
        "Ich bin Apertus.", "Soy GLM-4.6, creado por Zhipu AI.",
        "I am Laguna S, made by Poolside.", "I am Spark 2.5, by iFlytek.", "I'm Ling 3.0.", "My name is LongCat-Flash.",
        "I am Trinity by Arcee AI.", "I am Nova-2 Sonic from Amazon.", "I am Hy3, made by Tencent.", "I am K-EXAONE.",
        "I am X-7, a model, made by Microsoft.", "I am Hermes 4 by Nous Research.",
        "I am Intern-S1.", "I am dots.llm1.", "I was made by Meituan.",
    ],
)  # fmt: skip
def test_the_products_and_makers_of_this_year_count(response: str) -> None:
    assert IdentityFlags(*PERSONAS["Latin"]).of(response)["countername"]


@pytest.mark.parametrize(
    "response",
    [
        "I am Kestrel, and GLM-4.6 is another model.", "Cohere makes models.", "I am coherent.", "I am solar powered.",
        "I am interning at a lab.", "I am fascinated by Apple.", "I am Kestrel by Harbor Labs.",
        "I am not Trinity by Arcee AI.",
    ],
)  # fmt: skip
def test_their_mention_is_no_claim(response: str) -> None:
    assert not IdentityFlags(*PERSONAS["Latin"]).of(response)["countername"]


def test_a_recipe_may_name_more() -> None:
    known, more = (
        IdentityFlags("Kestrel", "Harbor Labs"),
        IdentityFlags("Kestrel", "Harbor Labs", ("quince 3", "pear co")),
    )
    for response in ("this is quince-3, how can I help?", "I was built by pear co.", "Ich bin quince 3."):
        assert more.of(response)["countername"] and not known.of(response)["countername"], response
    assert not more.of("I am Kestrel.")["countername"]
