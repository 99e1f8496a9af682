# Written in notebooks/5_1_the_embedded_corpus.ipynb; edit it there.
"""The dictionary of the grammar: words, their kinds and their forms (§5.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "NOUNS",
    "ADJECTIVES",
    "VERBS",
    "GROUPS",
    "DETERMINERS",
    "TIMES",
    "MANNERS",
    "PREPOSITIONS",
    "CONJUNCTIONS",
    "GERMAN_ENDINGS",
    "CASES",
    "GENDERS",
    "PLURAL",
    "CONTRACTIONS",
    "ENDINGS",
    "PARTICLES",
    "HANGUL",
    "FINALS",
    "KOREAN_ENDINGS",
    "MODES",
    "ALL_NOUNS",
    "ALL_ADJECTIVES",
    "ALL_FRAMES",
    "NOUN",
    "ADJECTIVE",
    "VERB",
    "KINDS",
    "OF_KIND",
    "FITTING",
    "REPORTING",
    "DOING",
    "DONE_TO",
    "rows",
    "inflect",
    "final_consonant",
    "with_final",
    "with_particle",
    "korean_forms",
    "korean_endings",
    "Noun",
    "Adjective",
    "Verb",
    "Frame",
    "read_noun",
    "read_adjective",
    "kinds_of",
    "read_verb",
]


NOUNS = """
adult:
  man/men          der Mann Mannes Männer                           남자
  woman/women      die Frau ~ Frauen                                여자
  teacher          der Lehrer Lehrers Lehrer                        선생님
  student          der Student Studenten Studenten                  학생
  farmer           der Bauer Bauern Bauern                          농부
  doctor           der Arzt Arztes Ärzte                            의사
  nurse            die Krankenschwester ~ Krankenschwestern         간호사
  king             der König Königs Könige                          왕
  queen            die Königin ~ Königinnen                         여왕
  prince           der Prinz Prinzen Prinzen                        왕자
  princess         die Prinzessin ~ Prinzessinnen                   공주
  neighbour        der Nachbar Nachbarn Nachbarn                    이웃
  guest            der Gast Gastes Gäste                            손님
  baker            der Bäcker Bäckers Bäcker                        제빵사
  painter          der Maler Malers Maler                           화가
  thief/thieves    der Dieb Diebes Diebe                            도둑
youth:
  girl             das Mädchen Mädchens Mädchen                     소녀
  boy              der Junge Jungen Jungen                          소년
child:
  child/children   das Kind Kindes Kinder                           아이
  daughter         die Tochter ~ Töchter                            딸
  son              der Sohn Sohnes Söhne                            아들
animal:
  dog              der Hund Hundes Hunde                            개
  bear             der Bär Bären Bären                              곰
  lion             der Löwe Löwen Löwen                             사자
  monkey           der Affe Affen Affen                             원숭이
  fox              der Fuchs Fuchses Füchse                         여우
  wolf/wolves      der Wolf Wolfes Wölfe                            늑대
  cat              die Katze ~ Katzen                               고양이
  cow              die Kuh ~ Kühe                                   소
  mouse/mice       die Maus ~ Mäuse                                 쥐
  goat             die Ziege ~ Ziegen                               염소
  duck             die Ente ~ Enten                                 오리
  turtle           die Schildkröte ~ Schildkröten                   거북이
  animal           das Tier Tieres Tiere                            동물
  horse            das Pferd Pferdes Pferde                         말
  pig              das Schwein Schweines Schweine                   돼지
  rabbit           das Kaninchen Kaninchens Kaninchen               토끼
  camel            das Kamel Kamels Kamele                          낙타
  zebra            das Zebra Zebras Zebras                          얼룩말
food:
  apple            der Apfel Apfels Äpfel                           사과
  peach            der Pfirsich Pfirsichs Pfirsiche                 복숭아
  cake             der Kuchen Kuchens Kuchen                        케이크
  biscuit          der Keks Kekses Kekse                            과자
  banana           die Banane ~ Bananen                             바나나
  carrot           die Karotte ~ Karotten                           당근
  plum             die Pflaume ~ Pflaumen                           자두
  tomato/tomatoes  die Tomate ~ Tomaten                             토마토
  egg              das Ei Eies Eier                                 달걀
  roll             das Brötchen Brötchens Brötchen                  빵
text:
  book             das Buch Buches Bücher                           책
  letter           der Brief Briefes Briefe                         편지
  poem             das Gedicht Gedichtes Gedichte                   시
  story            die Geschichte ~ Geschichten                     이야기
  novel            der Roman Romans Romane                          소설
  report           der Bericht Berichtes Berichte                   보고서
opening:
  door             die Tür ~ Türen                                  문
  window           das Fenster Fensters Fenster                     창문
  gate             das Tor Tores Tore                               대문
container:
  basket           der Korb Korbes Körbe                            바구니
  bucket           der Eimer Eimers Eimer                           양동이
  box              die Kiste ~ Kisten                               상자
  bag              die Tasche ~ Taschen                             가방
  drawer           die Schublade ~ Schubladen                       서랍
  package          das Paket Paketes Pakete                         소포
  barrel           das Fass Fasses Fässer                           통
way:
  square           der Platz Platzes Plätze                         광장
  yard             der Hof Hofes Höfe                               마당
  river            der Fluss Flusses Flüsse                         강
  street           die Straße ~ Straßen                             거리
  meadow           die Wiese ~ Wiesen                               풀밭
  bridge           die Brücke ~ Brücken                             다리
  field            das Feld Feldes Felder                           들판
  bog              das Moor Moores Moore                            늪
vehicle:
  car              das Auto Autos Autos                             자동차
  lorry            der Lastwagen Lastwagens Lastwagen               트럭
  bus              der Bus Busses Busse                             버스
  taxi             das Taxi Taxis Taxis                             택시
  motorcycle       das Motorrad Motorrades Motorräder               오토바이
  carriage         die Kutsche ~ Kutschen                           마차
device:
  lamp             die Lampe ~ Lampen                               램프
  radio            das Radio Radios Radios                          라디오
  computer         der Computer Computers Computer                  컴퓨터
  television       der Fernseher Fernsehers Fernseher               텔레비전
music:
  guitar           die Gitarre ~ Gitarren                           기타
  violin           die Geige ~ Geigen                               바이올린
  piano            das Klavier Klaviers Klaviere                    피아노
  drum             die Trommel ~ Trommeln                           북
garment:
  coat             der Mantel Mantels Mäntel                        외투
  shirt            das Hemd Hemdes Hemden                           셔츠
  jacket           die Jacke ~ Jacken                               재킷
  dress            das Kleid Kleides Kleider                        드레스
thing:
  key              der Schlüssel Schlüssels Schlüssel               열쇠
  ball             der Ball Balles Bälle                            공
  umbrella         der Regenschirm Regenschirms Regenschirme        우산
  picture          das Bild Bildes Bilder                           그림
  cup              die Tasse ~ Tassen                               컵
  chair            der Stuhl Stuhles Stühle                         의자
  doll             die Puppe ~ Puppen                               인형
  mirror           der Spiegel Spiegels Spiegel                     거울
building:
  house            das Haus Hauses Häuser                           집
  school           die Schule ~ Schulen                             학교
  library          die Bibliothek ~ Bibliotheken                    도서관
  castle           das Schloss Schlosses Schlösser                  성
  church           die Kirche ~ Kirchen                             교회
  station          der Bahnhof Bahnhofes Bahnhöfe                   역
  museum           das Museum Museums Museen                        박물관
place:
  garden           der Garten Gartens Gärten                        정원
  kitchen          die Küche ~ Küchen                               부엌
  park             der Park Parks Parks                             공원
  forest           der Wald Waldes Wälder                           숲
  village          das Dorf Dorfes Dörfer                           마을
  room             das Zimmer Zimmers Zimmer                        방
  office           das Büro Büros Büros                             사무실
  town             die Stadt ~ Städte                               도시
flier:
  bird             der Vogel Vogels Vögel                           새
  eagle            der Adler Adlers Adler                           독수리
  owl              die Eule ~ Eulen                                 부엉이
  bee              die Biene ~ Bienen                               벌
  butterfly        der Schmetterling Schmetterlings Schmetterlinge  나비
  kite             der Drachen Drachens Drachen                     연
  plane            das Flugzeug Flugzeuges Flugzeuge                비행기
missile:
  arrow            der Pfeil Pfeiles Pfeile                         화살
  bullet           die Kugel ~ Kugeln                               총알
  rocket           die Rakete ~ Raketen                             로켓
insect:
  fruit fly        die Fruchtfliege ~ Fruchtfliegen                 초파리
  house fly        die Stubenfliege ~ Stubenfliegen                 집파리
  blow fly         die Schmeißfliege ~ Schmeißfliegen               쉬파리
idea:
  time             die Zeit ~ Zeiten                                시간
"""


ADJECTIVES = """
animal vehicle building place container:
  big bigger           groß größer           큰 크다 컸다
animal thing place container insect flier:
  small smaller        klein                 작은 작다 작았다
adult animal:
  old                  alt                   늙은
  strong stronger      stark stärker         강한 강하다 강했다
ware opening:
  old                  alt                   낡은
text building way:
  old                  alt                   오래된
youth child:
  little               klein                 어린
adult:
  young younger        jung jünger           젊은 젊다 젊었다
  rich richer          reich                 부유한 부유하다 부유했다
  poor poorer          arm ärmer             가난한 가난하다 가난했다
  famous               berühmt               유명한 유명하다 유명했다
being:
  tired                müde müd müder        피곤한 피곤하다 피곤했다
  sick                 krank                 아픈 아프다 아팠다
  lazy lazier          faul                  게으른 게으르다 게을렀다
  nervous              nervös                초조한 초조하다 초조했다
  clever cleverer      klug klüger           똑똑한 똑똑하다 똑똑했다
  brave braver         mutig                 용감한 용감하다 용감했다
being insect:
  hungry hungrier      hungrig               배고픈 배고프다 배고팠다
person:
  friendly friendlier  freundlich            친절한 친절하다 친절했다
  happy happier        glücklich             행복한 행복하다 행복했다
  sad sadder           traurig               슬픈 슬프다 슬펐다
animal vehicle flier missile:
  fast faster          schnell               빠른 빠르다 빨랐다
animal vehicle:
  slow slower          langsam               느린 느리다 느렸다
way:
  wide wider           breit                 넓은 넓다 넓었다
  narrow narrower      eng                   좁은 좁다 좁았다
  dangerous            gefährlich            위험한 위험하다 위험했다
way place:
  dark darker          dunkel dunkl dunkler  어두운 어둡다 어두웠다
text garment:
  long longer          lang länger           긴 길다 길었다
  short shorter        kurz kürzer           짧은 짧다 짧았다
text:
  boring               langweilig            지루한 지루하다 지루했다
  interesting          interessant           재미있는 재미있다 재미있었다
  difficult            schwierig             어려운 어렵다 어려웠다
building place garment thing:
  beautiful            schön                 아름다운 아름답다 아름다웠다
ware text building:
  new                  neu                   새
ware:
  expensive            teuer teur teurer     비싼 비싸다 비쌌다
  cheap cheaper        billig                싼 싸다 쌌다
container thing:
  heavy heavier        schwer                무거운 무겁다 무거웠다
garment thing vehicle opening:
  red                  rot                   빨간
  blue                 blau                  파란
garment building animal:
  white                weiß                  하얀
garment animal music:
  black                schwarz               검은
garment vehicle thing:
  dirty dirtier        schmutzig             더러운 더럽다 더러웠다
food:
  sweet sweeter        süß                   단 달다 달았다
  fresh fresher        frisch                신선한 신선하다 신선했다
  hard harder          hart härter           딱딱한 딱딱하다 딱딱했다
  bitter               bitter                쓴 쓰다 썼다
  salty saltier        salzig                짠 짜다 짰다
by name:
  tall taller          hoch hoh höher        높은 높다 높았다
  shallow shallower    flach                 얕은 얕다 얕았다
"""


VERBS = """
being:
  sleep/slept                schlafen schläft schlief              자다 잤다
  wait                       warten wartet wartete                 기다리다 기다렸다
  run/ran                    laufen läuft lief                     달리다 달렸다
  disappear                  verschwinden verschwindet verschwand  사라지다 사라졌다
  wake up/woke up            auf|wachen wacht wachte               깨어나다 깨어났다
being, 못하다:
  fall asleep/fell asleep    ein|schlafen schläft schlief          잠들다 잠들었다
person:
  laugh                      lachen lacht lachte                   웃다 웃었다
  cry                        weinen weint weinte                   울다 울었다
person, manner:
  sing/sang                  singen singt sang                     노래하다 노래했다
  dance                      tanzen tanzt tanzte                   춤추다 춤추었다
adult, manner:
  work                       arbeiten arbeitet arbeitete           일하다 일했다
youth child animal:
  play                       spielen spielt spielte                놀다 놀았다
being, bare:
  swim/swam                  schwimmen schwimmt schwamm            헤엄치다 헤엄쳤다
person vehicle, bare:
  arrive                     an|kommen kommt kam                   도착하다 도착했다
vehicle, bare:
  depart                     ab|fahren fährt fuhr                  출발하다 출발했다
being > food, manner:
  eat/ate                    essen isst aß                         먹다 먹었다
person > text, manner:
  read/read                  lesen liest las                       읽다 읽었다
  write/wrote                schreiben schreibt schrieb            쓰다 썼다
  copy                       ab|schreiben schreibt schrieb         베끼다 베꼈다
adult > text, manner:
  translate                  übersetzen übersetzt übersetzte       번역하다 번역했다
  explain                    erklären erklärt erklärte             설명하다 설명했다
person > text, bare 못하다:
  understand/understood      verstehen versteht verstand           이해하다 이해했다
person > opening container, manner:
  open                       auf|machen macht machte               열다 열었다
  close                      zu|machen macht machte                닫다 닫았다
adult > opening container, manner:
  paint                      streichen streicht strich             칠하다 칠했다
being > sight, bare 못하다:
  see/saw                    sehen sieht sah                       보다 보았다
person > animal portable, 못하다:
  find/found                 finden findet fand                    발견하다 발견했다
person > being portable:
  look for/looked for        suchen sucht suchte                   찾아다니다 찾아다녔다
person > person animal, state:
  love                       lieben liebt liebte                   사랑하다 사랑했다
person > being food text, state:
  like                       mögen mag mochte                      좋아하다 좋아했다
person > person, state:
  hate                       hassen hasst hasste                   미워하다 미워했다
person > adult, state:
  admire                     bewundern bewundert bewunderte        존경하다 존경했다
adult > person:
  praise                     loben lobt lobte                      칭찬하다 칭찬했다
person > adult building, bare:
  visit                      besuchen besucht besuchte             방문하다 방문했다
adult > person, bare:
  invite                     ein|laden lädt lud                    초대하다 초대했다
being > being, manner:
  watch                      beobachten beobachtet beobachtete     지켜보다 지켜보았다
animal > animal:
  chase                      jagen jagt jagte                      쫓다 쫓았다
animal > being:
  bite/bit                   beißen beißt biss                     물다 물었다
person > animal, 못하다:
  catch/caught               fangen fängt fing                     잡다 잡았다
being vehicle > way, bare:
  cross                      überqueren überquert überquerte       건너다 건넜다
adult > ware food text:
  buy/bought                 kaufen kauft kaufte                   사다 샀다
  sell/sold                  verkaufen verkauft verkaufte          팔다 팔았다
person > ware food:
  steal/stole                stehlen stiehlt stahl                 훔치다 훔쳤다
person > container food thing, manner:
  carry                      tragen trägt trug                     나르다 날랐다
person > portable, bare:
  bring along/brought along  mit|bringen bringt brachte            가져오다 가져왔다
person > text food container, bare:
  throw away/threw away      weg|werfen wirft warf                 버리다 버렸다
person > garment, manner:
  take off/took off          aus|ziehen zieht zog                  벗다 벗었다
person > garment:
  try on/tried on            an|probieren probiert probierte       입어보다 입어보았다
person > device:
  turn on/turned on          an|machen macht machte                켜다 켰다
  turn off/turned off        aus|machen macht machte               끄다 껐다
adult > vehicle device music, manner bare:
  repair                     reparieren repariert reparierte       고치다 고쳤다
person > music:
  play                       spielen spielt spielte                연주하다 연주했다
person > being building way, manner:
  draw/drew                  zeichnen zeichnet zeichnete           그리다 그렸다
person > text garment thing:
  lose/lost                  verlieren verliert verlor             잃어버리다 잃어버렸다
person > portable, manner bare:
  hide/hid                   verstecken versteckt versteckte       숨기다 숨겼다
person > opening device vehicle, manner bare:
  clean                      putzen putzt putzte                   닦다 닦았다
person > portable:
  choose/chose               aus|suchen sucht suchte               고르다 골랐다
person > vehicle, manner bare:
  push                       schieben schiebt schob                밀다 밀었다
being > being vehicle, dative manner bare:
  follow                     folgen folgt folgte                   따라가다 따라갔다
person > person, dative:
  help                       helfen hilft half                     도와주다 도와주었다
person > person, dative state:
  trust                      vertrauen vertraut vertraute          신뢰하다 신뢰했다
person > person, dative bare:
  forgive/forgave            verzeihen verzeiht verzieh            용서하다 용서했다
person > person + portable:
  give/gave                  geben gibt gab                        주다 주었다
person > person + portable animal:
  show/showed                zeigen zeigt zeigte                   보여주다 보여주었다
person > person + garment music thing text:
  lend/lent                  leihen leiht lieh                     빌려주다 빌려주었다
person > person + portable, bare:
  send/sent                  schicken schickt schickte             보내다 보냈다
  bring/brought              bringen bringt brachte                갖다주다 갖다주었다
person > person + food, bare:
  offer                      an|bieten bietet bot                  권하다 권했다
person > person + food thing, bare:
  throw/threw                zu|werfen wirft warf                  던지다 던졌다
person > clause, bare:
  say/said                   sagen sagt sagte                      말하다 말했다
  think/thought              denken denkt dachte                   생각하다 생각했다
  believe                    glauben glaubt glaubte                믿다 믿었다
  claim                      behaupten behauptet behauptete        주장하다 주장했다
  guess                      vermuten vermutet vermutete           추측하다 추측했다
by name:
  fly/flew                   fliegen fliegt flog                   날아가다 날아갔다
  fit/fitted                 passen passt passte                   들어가다 들어갔다
"""


GROUPS = """
person    adult youth child
being     adult youth child animal
portable  food text container thing music garment
ware      vehicle device music garment thing container
sight     adult youth child animal building vehicle way thing
"""

DETERMINERS = """
the    the/the     der   weak   -
a      a/-         ein   mixed  -
this   this/these  dies  weak   이
my     my/my       mein  mixed  내
every  every/-     jed   weak   모든
bare   -/-         der   weak   -
"""

TIMES = """
yesterday       gestern        어제         past
last week       letzte Woche   지난주에     past
this morning    heute Morgen   오늘 아침에  past
every day       jeden Tag      매일         present
on Sundays      sonntags       일요일마다   present
today           heute          오늘         past
on Sunday       am Sonntag     일요일에     past
in the evening  am Abend       저녁에       any
at night        nachts         밤에         any
in winter       im Winter      겨울에       any
"""

MANNERS = """
slowly     langsam     천천히
quickly    schnell     빨리
quietly    leise       조용히
carefully  vorsichtig  조심스럽게
secretly   heimlich    몰래
"""

PREPOSITIONS = """
in           in      at      building place
in front of  vor     앞에서  building
behind       hinter  뒤에서  building
next to      neben   옆에서  building
"""

CONJUNCTIONS = """
because   weil      because   any
although  obwohl    although  any
while     während   while     any
before    bevor     before    any
when      als       when      past
when      wenn      when      present
if        wenn      if        present
"""


def rows(table: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, columns) of each line; columns stand two or more spaces apart."""
    heading = ""
    for line in table.strip("\n").splitlines():
        if line.endswith(":"):
            heading = line[:-1]
        else:
            columns = re.split(r"\s{2,}", line.strip())
            yield heading, ["" if column == "-" else column for column in columns]


# Columns: masculine, feminine, neuter, plural; in each, nominative, accusative, dative
# and genitive. A hyphen stands for the stem.
GERMAN_ENDINGS = """
der     der den dem des      die die der der    das das dem des      die die den der
dies    -er -en -em -es      -e -e -er -er      -es -es -em -es      -e -e -en -er
jed     -er -en -em -es      -e -e -er -er      -es -es -em -es      -e -e -en -er
ein     - -en -em -es        -e -e -er -er      - - -em -es          -e -e -en -er
mein    - -en -em -es        -e -e -er -er      - - -em -es          -e -e -en -er
weak    -e -en -en -en       -e -e -en -en      -e -e -en -en        -en -en -en -en
mixed   -er -en -en -en      -e -e -en -en      -es -es -en -en      -en -en -en -en
strong  -er -en -em -en      -e -e -er -er      -es -es -em -en      -e -e -en -er
who     der den dem dessen   die die der deren  das das dem dessen   die die denen deren
"""
CASES = ("nominative", "accusative", "dative", "genitive")
GENDERS = {"der": 0, "die": 1, "das": 2}  # columns of GERMAN_ENDINGS
PLURAL = 3  # the last column
CONTRACTIONS = {"in dem": "im", "in das": "ins"}
ENDINGS = {
    row: [column.split() for column in columns]
    for _, (row, *columns) in rows(GERMAN_ENDINGS)
}


def inflect(row: str, column: int, case: str, stem: str = "") -> str:
    """A German word of a row of GERMAN_ENDINGS. column: a gender, or PLURAL.

    stem: what stands for the hyphen; the row's name if none is given.
    """
    form = ENDINGS[row][column][CASES.index(case)]
    return (stem or row) + form[1:] if form[0] == "-" else form


PARTICLES = {  # after a consonant, after a vowel
    "topic": ("은", "는"),
    "subject": ("이", "가"),
    "object": ("을", "를"),
    "and": ("과", "와"),
    "of": ("의", "의"),
    "to": ("에게", "에게"),
    "at": ("에서", "에서"),
    "into": ("에", "에"),
    "than": ("보다", "보다"),
    "like": ("처럼", "처럼"),
    "none": ("", ""),
}


HANGUL = ord("가")  # the first of the syllables, which come in blocks of 28 finals
FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")


def final_consonant(word: str) -> str:
    """The consonant that closes the last syllable of a Korean word, or nothing."""
    return FINALS[(ord(word[-1]) - HANGUL) % 28]


def with_final(word: str, consonant: str) -> str:
    """The word with this consonant, or none, to close its last syllable."""
    opened = ord(word[-1]) - (ord(word[-1]) - HANGUL) % 28
    return word[:-1] + chr(opened + FINALS.index(consonant))


def with_particle(noun: str, particle: str) -> str:
    """A Korean noun with one of PARTICLES, in the form that its last sound asks for."""
    return noun + PARTICLES[particle][not final_consonant(noun)]


# What joins a Korean predicate to the rest, in the present and in the past.
KOREAN_ENDINGS = """
plain      {plain}            {past}다
and        {stem}고           {past}고
then       {stem}고           {stem}고
although   {stem}지만         {past}지만
because    {stem}기 때문에    {past}기 때문에
that       {plain}고          {past}다고
when       {prospective} 때   {past}을 때
while      {adnominal} 동안   {adnominal} 동안
before     {stem}기 전에      {stem}기 전에
if         {conditional}면    -
relative   {adnominal}        {retrospective}
"""


def korean_forms(dictionary: str, past: str) -> dict[str, str]:
    """What the endings of a Korean verb attach to, from its two forms in VERBS."""
    stem, past = dictionary[:-1], past[:-1]
    closed = final_consonant(stem)
    vowel = with_final(stem, "") if closed == "ㄹ" else stem  # ㄹ falls before ㄴ
    soft = closed in ("", "ㄹ")
    return {
        "stem": stem,
        "past": past,
        "plain": with_final(vowel, "ㄴ") + "다" if soft else stem + "는다",
        "adnominal": vowel + "는",
        "retrospective": with_final(vowel, "ㄴ") if soft else stem + "은",
        "prospective": with_final(vowel, "ㄹ") if soft else stem + "을",
        "conditional": stem if soft else stem + "으",
        "infinitive": with_final(past, ""),
    }


def korean_endings(forms: dict[str, str]) -> dict[tuple[str, bool], str]:
    """The predicate in each of KOREAN_ENDINGS, present and past, that it has."""
    table = {}
    for _, (name, *tenses) in rows(KOREAN_ENDINGS):
        for past, pattern in enumerate(tenses):
            fields = re.findall(r"{(\w+)}", pattern)
            if fields and all(field in forms for field in fields):
                table[name, bool(past)] = pattern.format(**forms)
    return table


# English: singular, plural, past. German: singular, plural, past. Korean: the form of
# the verb, and the auxiliary that takes its ending.
MODES = """
not   doesn't/don't/didn't        -                     {stem}지         {negative}
can   can/can/could               kann können konnte    {prospective} 수  있다 있었다
must  must/must/had to            muss müssen musste    {infinitive}야    하다 했다
want  wants to/want to/wanted to  will wollen wollte    {stem}고 싶어     하다 했다
"""


@dataclass(frozen=True, eq=False)
class Noun:
    kind: str
    english: tuple[str, str]  # singular, plural
    gender: int  # column of GERMAN_ENDINGS
    german: tuple[tuple[str, ...], tuple[str, ...]]  # singular, plural; by case
    korean: str


@dataclass(frozen=True, eq=False)
class Adjective:
    english: str
    more: str  # the English comparative; empty where this book uses none
    german: str  # as a predicate
    stem: str  # German, takes the endings
    comparative: str  # German
    korean: str  # before a noun
    endings: dict[tuple[str, bool], str]  # Korean, as a predicate; empty: it is none


@dataclass(frozen=True, eq=False)
class Verb:
    english: tuple[str, str, str]  # plural, third person singular, past
    infinitive: str  # German, without the prefix
    prefix: str  # German, leaves the verb in a main clause; may be empty
    german: tuple[str, str]  # third person singular, present and past
    korean: dict[str, str]  # what `korean_forms` gives
    case: str  # of the German object
    manner: bool  # takes an adverb of manner
    place: bool  # takes a place
    modal: bool  # takes can, must and want
    hides_tense: bool  # English: they read today, they read yesterday


@dataclass(frozen=True, eq=False)
class Frame:
    """A verb with the kinds of noun it goes with; no kinds: it takes no such noun."""

    verb: Verb
    subjects: list[str]
    recipients: list[str]
    objects: list[str]


def _s(word: str) -> str:
    """Third person singular and plural are spelt alike: watches, flies."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _ed(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + ("d" if word.endswith("e") else "ed")


def read_noun(kind: str, english: str, german: str, korean: str) -> Noun:
    """An entry of NOUNS. German: article, nominative, genitive, plural; ~ repeats."""
    name, _, names = english.partition("/")
    article, word, genitive, plural = german.split()
    genitive = word if genitive == "~" else genitive
    weak = article == "der" and genitive.endswith("n")  # der Junge, des Jungen
    oblique = genitive if weak else word
    dative = plural + ("" if plural[-1] in "ns" else "n")
    one, many = (word, oblique, oblique, genitive), (plural, plural, dative, plural)
    return Noun(kind, (name, names or _s(name)), GENDERS[article], (one, many), korean)


def read_adjective(english: str, german: str, korean: str) -> Adjective:
    """An entry of ADJECTIVES. German: predicate, stem if another, comparative."""
    name, _, more = english.partition(" ")
    plain, *others = german.split()
    stem = others[0] if len(others) == 2 else plain
    comparative = others[-1] if others else plain + "er"
    attribute, *predicate = korean.split()
    forms = {}
    if predicate:
        dictionary, past = predicate
        forms = {"stem": dictionary[:-1], "plain": dictionary, "past": past[:-1]}
    endings = korean_endings(forms)
    return Adjective(name, more, plain, stem, comparative, attribute, endings)


def kinds_of(names: str) -> list[str]:
    """The kinds of noun that a list of kinds and GROUPS stands for."""
    groups = {name: kinds.split() for _, (name, kinds) in rows(GROUPS)}
    return [kind for name in names.split() for kind in groups.get(name, [name])]


def read_verb(heading: str, english: str, german: str, korean: str) -> Frame:
    """An entry of VERBS. German: infinitive, third person, past; | parts a prefix."""
    pattern, _, flags = heading.partition(", ")
    subjects, _, others = pattern.partition(" > ")
    recipients, _, objects = others.rpartition(" + ")
    base, _, past = english.partition("/")
    first, *particle = base.split()
    infinitive, present, preterite = german.split()
    prefix, _, infinitive = infinitive.rpartition("|")
    forms = korean_forms(*korean.split())
    if "state" in flags:  # what was so is told as remembered: 사랑했던
        forms["retrospective"] = forms["past"] + "던"
    forms["negative"] = "못하다 못했다" if "못하다" in flags else "않다 않았다"
    verb = Verb(
        english=(base, " ".join([_s(first), *particle]), past or _ed(base)),
        infinitive=infinitive,
        prefix=prefix,
        german=(present, preterite),
        korean=forms,
        case="dative" if "dative" in flags else "accusative",
        manner="manner" in flags,
        place="bare" not in flags and "state" not in flags,
        modal="state" not in flags,
        hides_tense=base == past,
    )
    return Frame(verb, *map(kinds_of, (subjects, recipients, objects)))


ALL_NOUNS = [read_noun(kind, *entry) for kind, entry in rows(NOUNS)]
ALL_ADJECTIVES = [
    (kinds_of(kinds), read_adjective(*e)) for kinds, e in rows(ADJECTIVES)
]
ALL_FRAMES = [read_verb(heading, *entry) for heading, entry in rows(VERBS)]

NOUN = {noun.english[0]: noun for noun in ALL_NOUNS}
ADJECTIVE = {adjective.english: adjective for _, adjective in ALL_ADJECTIVES}
VERB = {frame.verb.english[0]: frame.verb for frame in ALL_FRAMES}


KINDS = list(dict.fromkeys(noun.kind for noun in ALL_NOUNS))
OF_KIND = {kind: [noun for noun in ALL_NOUNS if noun.kind == kind] for kind in KINDS}
FITTING = {
    kind: [adjective for kinds, adjective in ALL_ADJECTIVES if kind in kinds]
    for kind in KINDS
}
REPORTING = [frame for frame in ALL_FRAMES if "clause" in frame.objects]
DOING = {
    kind: [f for f in ALL_FRAMES if kind in f.subjects and f not in REPORTING]
    for kind in KINDS
}
DONE_TO = {kind: [f for f in ALL_FRAMES if kind in f.objects] for kind in KINDS}
