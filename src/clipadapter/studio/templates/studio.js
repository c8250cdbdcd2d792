const perform = (data) => trigger('act', data);
const parsePictures = (data) => ({ ...data, ...(data.pictures ? { pictures: JSON.parse(data.pictures) } : {}) });
const FILES_PER_REQUEST = 50;
const NOTE_MILLISECONDS = 8000;

const sendFiles = async (files, className, dropArea) => {
  const label = dropArea && dropArea.querySelector('.cs-sending');
  const sent = [];
  for (const [i, file] of files.entries()) {
    if (label) {
      label.dataset.default ??= label.textContent;
      label.textContent = `Sending ${i + 1} of ${files.length}`;
    }
    try {
      const { path } = await upload(file);
      sent.push({ path, name: file.name });
    } catch (error) {
      perform({ action: 'upload-failed', text: `${file.name}: ${error.message || error}` });
    }
    const isLast = i === files.length - 1;
    if (sent.length === FILES_PER_REQUEST || (sent.length && isLast)) {
      perform({ action: 'upload', class: className, files: sent.splice(0) });
    }
  }
};

// ---- Selection of many pictures: shared by the panels, and kept when the server renders them again. ----
const selection = (window.clipadapterSelection ??= { keys: new Set(), isOn: false, last: null, panels: new Set() });
const showSelection = () => selection.panels.forEach((show) => show());
const thumbs = () => [...element.querySelectorAll('.cs-thumb[data-picture]')].filter((one) => !one.closest('.cs-nearest'));
const setMode = (isOn) => {
  selection.isOn = isOn;
  if (!isOn) selection.keys.clear();
  showSelection();
};
const toggle = (keys, isSelected) => {
  for (const key of keys) isSelected ? selection.keys.add(key) : selection.keys.delete(key);
  selection.isOn = true;
  showSelection();
};
selection.panels.add(() => {
  document.body.classList.toggle('cs-selecting', selection.isOn);
  for (const thumb of thumbs()) {
    if (selection.isOn || thumb.hasAttribute('data-select')) thumb.setAttribute('aria-pressed', selection.keys.has(thumb.dataset.picture));
    else thumb.removeAttribute('aria-pressed');
  }
  const bar = element.querySelector('.cs-selection');
  if (!bar) return;
  const all = new Set([...document.querySelectorAll('.cs-thumb[data-picture]')].map((one) => one.dataset.picture));
  for (const key of selection.keys) if (!all.has(key)) selection.keys.delete(key);
  bar.hidden = !selection.isOn;
  bar.querySelector('.cs-selected-count').textContent = `${selection.keys.size} selected`;
  for (const button of bar.querySelectorAll('[data-selected]')) button.disabled = !selection.keys.size;
  if (selection.target) bar.querySelector('.cs-target').value = selection.target;
  element.querySelector('.cs-select-row button').setAttribute('aria-pressed', selection.isOn);
});
watch('value', showSelection);
element.addEventListener('change', (event) => {
  if (event.target.matches('.cs-target')) selection.target = event.target.value;
});
// True if a click was about the selection.
const select = (event) => {
  const thumb = event.target.closest('.cs-thumb[data-picture]');
  if (thumb && !thumb.closest('.cs-nearest') && (selection.isOn || thumb.hasAttribute('data-select') || event.ctrlKey || event.metaKey)) {
    const keys = thumbs().map((one) => one.dataset.picture);
    const [here, last] = [keys.indexOf(thumb.dataset.picture), keys.indexOf(selection.last)];
    const range = event.shiftKey && last >= 0 ? keys.slice(Math.min(here, last), Math.max(here, last) + 1) : [keys[here]];
    const isSelected = event.shiftKey || !selection.keys.has(keys[here]);
    selection.last = keys[here];
    toggle(range, isSelected);
    return true;
  }
  const button = event.target.closest('button');
  if (!button) return false;
  if ('selectMode' in button.dataset) setMode(!selection.isOn);
  else if ('selectAll' in button.dataset) {
    const keys = thumbs().filter((one) => button.closest('.cs-card, .cs-group').contains(one)).map((one) => one.dataset.picture);
    toggle(keys, !keys.every((key) => selection.keys.has(key)));
  } else if (button.dataset.selected) {
    const target = element.querySelector('.cs-target').value;
    perform({ action: button.dataset.selected, class: target, pictures: [...selection.keys] });
    setMode(false);
  } else return false;
  return true;
};

element.addEventListener('click', (event) => {
  if (select(event)) return;
  const button = event.target.closest('button[data-action]');
  if (!button || button.disabled) return;
  // After the first click of a double click, another class or picture has the place of the removed one.
  if (event.detail > 1 && button.dataset.action.startsWith('remove')) return;
  perform(parsePictures({ ...button.dataset }));
});
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const form = event.target;
  perform({ ...form.dataset, ...Object.fromEntries(new FormData(form)) });
});
element.addEventListener('change', (event) => {
  const input = event.target;
  if (input.matches('input[type=radio][data-action]')) perform({ ...input.dataset });
  if (input.matches('input[type=checkbox][data-action]')) perform({ ...input.dataset, on: input.checked ? 'yes' : '' });
  if (!input.matches('input[type=file]') || !input.files.length) return;
  const files = [...input.files];
  input.value = '';
  input.blur();  // the number keys label the next picture while nothing has the focus
  sendFiles(files, input.dataset.upload, input.closest('[data-drop]'));
});
for (const [kind, isOver] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  element.addEventListener(kind, (event) => {
    const dropArea = event.target.closest('[data-drop]');
    if (!dropArea) return;
    event.preventDefault();
    dropArea.classList.toggle('cs-over', isOver);
    if (kind === 'drop') sendFiles([...event.dataTransfer.files], dropArea.dataset.drop, dropArea);
  });
}
// The field of a new name gets the focus once: later updates from the server must not disturb a person who types.
let focusedClass = null;
watch('value', () => {
  const field = element.querySelector('[data-focus]');
  const className = field && field.form.dataset.class;
  if (field && className !== focusedClass) { field.focus(); field.select(); }
  focusedClass = className;
});

// A switch that has the focus keeps it when the server renders it again.
let focusedSwitch = '';
document.addEventListener('focusin', (event) => {
  const input = element.contains(event.target) && event.target;
  focusedSwitch = !input ? '' : input.matches('input[type=radio]') ? 'input[type=radio]:checked' : input.matches('input[type=checkbox]') ? 'input[type=checkbox]' : '';
});
watch('value', () => {
  if (focusedSwitch && (document.activeElement === document.body || !document.activeElement)) element.querySelector(focusedSwitch)?.focus();
});

const isTyping = (target) => target.closest && target.closest('input, textarea, select, [contenteditable]');
if (element.closest('#cs-queue')) {
  document.addEventListener('keydown', (event) => {
    if (selection.isOn && event.key === 'Escape') setMode(false);
    if (selection.isOn || event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event.target)) return;
    const focused = document.activeElement;
    if (focused !== document.body && focused && !element.contains(focused)) return;
    const button = element.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (button) { event.preventDefault(); button.click(); }
  });
}
if (element.closest('#cs-status')) {
  // Gradio's field takes only files that the browser knows as pictures, and Chromium on Linux does not know HEIC.
  const isUnknown = (file) => !file.type && /\.(heic|heif|hif|avif)$/i.test(file.name);
  const setFile = (input, file) => {
    const files = new DataTransfer();
    files.items.add(isUnknown(file) ? new File([file], file.name, { type: 'image/heic' }) : file);
    input.files = files.files;
  };
  const tryInput = (target) => target.closest && target.closest('#cs-try') && document.querySelector('#cs-try input[type=file]');
  document.addEventListener('click', (event) => {
    const input = tryInput(event.target);
    if (input) input.accept = 'image/*,.heic,.heif,.hif,.avif';
  }, true);
  document.addEventListener('change', (event) => {
    const input = tryInput(event.target);
    if (input === event.target && input.files.length) setFile(input, input.files[0]);
  }, true);
  document.addEventListener('drop', (event) => {
    const input = tryInput(event.target);
    const file = event.dataTransfer.files[0];
    if (!input || !file || !isUnknown(file)) return;
    event.preventDefault();
    event.stopPropagation();
    setFile(input, file);
    input.dispatchEvent(new Event('change', { bubbles: true }));
  }, true);
  const text = '<text x="200" y="100" text-anchor="middle" font-family="system-ui" font-size="16" fill="gray">This browser shows no HEIC</text>';
  const noPreview = `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" width="400" height="200">${text}</svg>`)}`;
  document.addEventListener('error', (event) => {
    const image = event.target;
    if (image.matches && image.matches('#cs-try img') && !image.src.startsWith('data:')) image.src = noPreview;
  }, true);
  // The status panel has the results of all actions, also of those that change no other panel.
  let before = { uploads: 0, rejectedNames: 0 };
  let closedNote = '';
  let timer = 0;
  const closeNote = (number) => {
    closedNote = number;
    const note = element.querySelector('.cs-note');
    if (note && note.dataset.note === number) note.classList.add('cs-closed');
  };
  let shownNote = '';
  const showNote = () => {
    const note = element.querySelector('.cs-note');
    const number = note.dataset.note;
    note.classList.toggle('cs-closed', number === closedNote);
    if (number === shownNote) return;
    shownNote = number;
    clearTimeout(timer);
    // An error or an offer stays until it is closed or another message comes.
    if (!note.matches('.cs-error') && !note.querySelector('[data-action]')) {
      timer = setTimeout(() => closeNote(number), NOTE_MILLISECONDS);
    }
  };
  element.addEventListener('click', (event) => {
    if (event.target.closest('[data-close-note]')) closeNote(element.querySelector('.cs-note').dataset.note);
  });
  watch('value', () => {
    showNote();
    // Gradio puts the button that copies into the label, which then names the button and not the field.
    document.querySelector('#cs-folder input, #cs-folder textarea')?.setAttribute('aria-label', 'Save the model to this folder');
    const { uploads, rejectedNames } = element.querySelector('.cs-status').dataset;
    if (uploads !== before.uploads) {
      for (const label of document.querySelectorAll('.cs-sending[data-default]')) label.textContent = label.dataset.default;
    }
    const field = document.querySelector('#cs-new input, #cs-new textarea');
    if (Number(rejectedNames) > before.rejectedNames) { field.focus(); field.select(); }
    before = { uploads, rejectedNames: Number(rejectedNames) };
  });
  document.addEventListener('keydown', (event) => {
    const isUndo = event.key.toLowerCase() === 'z' && (event.ctrlKey || event.metaKey) && !event.shiftKey;
    if (!isUndo || isTyping(event.target)) return;
    event.preventDefault();
    perform({ action: 'undo' });
  });
}
