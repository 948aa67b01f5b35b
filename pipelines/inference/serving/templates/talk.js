"use strict";
const $ = id => document.getElementById(id);
const RECORDED_SECONDS = 30;
const FORMATS = { wav: "wav", flac: "flac", mp3: "mp3", ogg: "ogg", oga: "ogg", opus: "opus" };
const FFT = 512;

let sound = null; // {name, blob, format, clipId, samples, rate, seconds}
let runs = {};
let recorder = null;
let asking = null;

// The token stands behind the # of the printed address, which no server is sent; it leaves the address at once.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}

async function api(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  $("key").hidden = response.status !== 401;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* no words of the server's */ }
  throw new Error(message);
}

async function connect() {
  try {
    const models = (await (await api("/v1/models")).json()).data;
    runs = Object.fromEntries(models.map(model => [model.id, model]));
    $("run").replaceChildren(...models.map(model => new Option(model.id)));
    const examples = (await (await api("/v1/examples")).json()).data;
    $("examples-label").hidden = !examples.length;
    $("examples").replaceChildren(new Option("choose one …", ""), ...examples.map(example => {
      const named = `${example.task}: ${example.recordings.join(" + ")} (${example.seconds.toFixed(1)} s)`;
      const option = new Option(named, example.clip_id);
      option.example = example;
      return option;
    }));
    say("problem", "");
    allow();
  } catch (error) {
    say("problem", error.message, true);
  }
}

function say(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}

function allow() {
  $("send").disabled = !sound || !$("run").value || asking !== null;
}

function heardOf(seconds) {
  const most = runs[$("run").value]?.heard_seconds ?? 30;
  return Math.min(seconds, most);
}

function tellSound() {
  if (!sound) return;
  const parts = [sound.name];
  if (sound.seconds) {
    const heard = heardOf(sound.seconds);
    parts.push(heard < sound.seconds ? `${sound.seconds.toFixed(1)} s, of which this run hears the first ${heard.toFixed(1)} s`
      : `${sound.seconds.toFixed(1)} s, all of which this run hears`);
  } else parts.push("this browser cannot show it; the server may hear it");
  say("about", parts.join(": "));
}

async function take(name, blob, more = {}) {
  const format = FORMATS[name.split(".").pop().toLowerCase()] ?? "wav";
  sound = { name, blob, format, clipId: "", samples: null, rate: 0, seconds: 0, ...more };
  if (blob) {
    if ($("player").src) URL.revokeObjectURL($("player").src);
    $("player").src = URL.createObjectURL(blob);
    try {
      const { samples, rate } = await decode(blob);
      Object.assign(sound, { samples, rate, seconds: samples.length / rate });
    } catch { /* some containers are known to the server alone */ }
  }
  $("seen").hidden = !sound.samples;
  tellSound();
  draw();
  allow();
}

async function decode(blob) {
  const context = new AudioContext();
  try {
    const buffer = await context.decodeAudioData(await blob.arrayBuffer());
    return { samples: buffer.getChannelData(0), rate: buffer.sampleRate };
  } finally {
    context.close();
  }
}

// What a microphone gives is compressed in ways that the server does not read, so it is sent as plain WAV.
function asWav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, place) => view.setUint8(at + place, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, place) => view.setInt16(44 + 2 * place, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return new Blob([view], { type: "audio/wav" });
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    say("about", `The microphone cannot be used: ${error.message}`, true);
    return;
  }
  const chunks = [];
  let started = performance.now();
  recorder = new MediaRecorder(stream);
  const tick = setInterval(() => {
    const seconds = (performance.now() - started) / 1000;
    $("record").textContent = `Stop (${Math.floor(seconds)} s)`;
    if (seconds >= RECORDED_SECONDS) recorder?.stop();
  }, 250);
  recorder.onstart = () => { started = performance.now(); };
  recorder.ondataavailable = event => chunks.push(event.data);
  recorder.onstop = async () => {
    clearInterval(tick);
    stream.getTracks().forEach(track => track.stop());
    recorder = null;
    $("record").textContent = "Record";
    $("record").classList.remove("on");
    $("record").setAttribute("aria-pressed", "false");
    try {
      const { samples, rate } = await decode(new Blob(chunks));
      await take("recording.wav", asWav(samples, rate));
    } catch (error) {
      say("about", `Nothing was recorded: ${error.message}`, true);
    }
  };
  recorder.start();
  $("record").classList.add("on");
  $("record").setAttribute("aria-pressed", "true");
  say("about", `Recording; it stops by itself after ${RECORDED_SECONDS} s.`);
}

async function takeExample() {
  const example = $("examples").selectedOptions[0].example;
  if (!example) return;
  $("question").value = example.question;
  let blob = null;
  try { blob = await (await api(`/v1/examples/${encodeURIComponent(example.clip_id)}`)).blob(); } catch { /* features suffice */ }
  await take(example.recordings.join(" + "), blob, { clipId: example.clip_id, seconds: example.seconds });
}

function surface(id) {
  const canvas = $(id), scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  return [canvas, canvas.getContext("2d")];
}

function draw() {
  if (!sound?.samples) return;
  const told = `${sound.name}, ${sound.seconds.toFixed(1)} s`;
  $("wave").setAttribute("aria-label", `Wave of ${told}`);
  $("spectrum").setAttribute("aria-label", `Spectrogram of ${told}, up to 8 kHz`);
  drawWave(...surface("wave"));
  drawSpectrum(...surface("spectrum"));
}

function veil(canvas, context) {
  const end = canvas.width * heardOf(sound.seconds) / sound.seconds;
  context.fillStyle = "rgb(248 250 252 / 72%)";
  context.fillRect(end, 0, canvas.width - end, canvas.height);
}

function drawWave(canvas, context) {
  const { samples } = sound, middle = canvas.height / 2;
  const loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-4);
  context.fillStyle = "#0f766e";
  for (let x = 0; x < canvas.width; x++) {
    const from = Math.floor(x * samples.length / canvas.width), to = Math.max(from + 1, Math.floor((x + 1) * samples.length / canvas.width));
    let low = 0, high = 0;
    for (let place = from; place < to; place++) { low = Math.min(low, samples[place]); high = Math.max(high, samples[place]); }
    const top = middle - 0.95 * middle * high / loudest;
    context.fillRect(x, top, 1, Math.max(1, 0.95 * middle * (high - low) / loudest));
  }
  veil(canvas, context);
}

function drawSpectrum(canvas, context) {
  const { samples, rate } = sound, image = context.createImageData(canvas.width, canvas.height);
  const bins = Math.min(FFT / 2, Math.round(8000 / rate * FFT)), columns = [];
  let loudest = -Infinity;
  for (let x = 0; x < canvas.width; x++) {
    const start = Math.floor(x * Math.max(0, samples.length - FFT) / canvas.width);
    const levels = spectrum(samples, start).slice(0, bins);
    columns.push(levels);
    for (const level of levels) loudest = Math.max(loudest, level);
  }
  columns.forEach((levels, x) => {
    for (let y = 0; y < canvas.height; y++) {
      const level = levels[Math.floor((canvas.height - 1 - y) * bins / canvas.height)];
      const share = Math.max(0, Math.min(1, 1 + (level - loudest) / 70)); // 70 dB below the loudest is dark
      image.data.set([11 + 230 * share ** 3, 31 + 215 * share, 36 + 130 * share ** 1.5, 255], 4 * (y * canvas.width + x));
    }
  });
  context.putImageData(image, 0, 0);
  veil(canvas, context);
}

const HANN = Float32Array.from({ length: FFT }, (_, place) => 0.5 - 0.5 * Math.cos(2 * Math.PI * place / FFT));

/** Levels in dB of the FFT of a window of samples. */
function spectrum(samples, start) {
  const real = new Float32Array(FFT), imaginary = new Float32Array(FFT), bits = Math.log2(FFT);
  for (let place = 0; place < FFT; place++) {
    let turned = 0;
    for (let bit = 0; bit < bits; bit++) turned |= ((place >> bit) & 1) << (bits - 1 - bit);
    real[turned] = (samples[start + place] ?? 0) * HANN[place];
  }
  for (let size = 2; size <= FFT; size *= 2) {
    for (let block = 0; block < FFT; block += size) {
      for (let k = 0; k < size / 2; k++) {
        const angle = -2 * Math.PI * k / size, one = block + k, two = one + size / 2;
        const re = Math.cos(angle) * real[two] - Math.sin(angle) * imaginary[two];
        const im = Math.cos(angle) * imaginary[two] + Math.sin(angle) * real[two];
        real[two] = real[one] - re; imaginary[two] = imaginary[one] - im;
        real[one] += re; imaginary[one] += im;
      }
    }
  }
  return Array.from({ length: FFT / 2 }, (_, bin) => 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-10));
}

function base64Of(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

async function ask(event) {
  event.preventDefault();
  if (!sound || asking) return;
  const question = $("question").value.trim(), run = $("run").value;
  const item = element("li"), answer = element("p"), about = element("small", `${run}, ${sound.name}`);
  item.className = "writing";
  item.append(element("h3", question), answer, about);
  $("answers").setAttribute("aria-busy", "true"); // a reader speaks the answer once it is whole
  $("answers").prepend(item);
  asking = new AbortController();
  $("stop").hidden = false;
  say("problem", "");
  allow();
  try {
    const part = sound.clipId ? { type: "input_clip", input_clip: { clip_id: sound.clipId } }
      : { type: "input_audio", input_audio: { data: await base64Of(sound.blob), format: sound.format } };
    const body = JSON.stringify({
      model: run, stream: true, stream_options: { include_usage: true },
      messages: [{ role: "user", content: [part, { type: "text", text: question }] }],
    });
    const options = { method: "POST", body, headers: { "Content-Type": "application/json" }, signal: asking.signal };
    for await (const chunk of events(await api("/v1/chat/completions", options))) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.textContent += chunk.choices[0]?.delta.content ?? "";
      if (chunk.choices[0]?.finish_reason === "length") about.append("; cut, it may be no longer");
      if (chunk.heard) about.append(`; heard ${chunk.heard.heard_seconds.toFixed(1)} s of ${chunk.heard.given_seconds.toFixed(1)} s`);
      if (chunk.usage) about.append(`; ${chunk.usage.completion_tokens} tokens`);
    }
    if (!answer.textContent) answer.textContent = "(empty)";
  } catch (error) {
    if (error.name === "AbortError") about.append("; stopped");
    else { item.remove(); say("problem", error.message, true); }
  } finally {
    item.classList.remove("writing");
    $("answers").setAttribute("aria-busy", "false");
    $("stop").hidden = true;
    asking = null;
    allow();
    $("question").focus();
  }
}

/** The objects of a stream of events, to its end. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

$("file").addEventListener("change", () => { const [file] = $("file").files; if (file) take(file.name, file); });
$("drop").addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file.name, file);
});
$("record").addEventListener("click", record);
$("examples").addEventListener("change", takeExample);
$("run").addEventListener("change", () => { tellSound(); draw(); });
$("ask").addEventListener("submit", ask);
$("stop").addEventListener("click", () => asking?.abort());
$("key").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("token", event.target.elements.token.value.trim());
  $("key").hidden = true;
  connect();
});
window.addEventListener("resize", draw);
connect();
