// Finds and makes elements. Text is always set as text: nothing here takes HTML.

export function find<E extends HTMLElement>(selector: string, root: ParentNode = document): E {
  const found = root.querySelector<E>(selector);
  if (found === null) throw new Error(`${selector} is missing in index.html`);
  return found;
}

export function fromTemplate(id: string): HTMLElement {
  const template = find<HTMLTemplateElement>(`template#${id}`);
  const copy = document.importNode(template.content, true).firstElementChild;
  if (!(copy instanceof HTMLElement)) throw new Error(`the template ${id} is empty`);
  return copy;
}

export function setText(selector: string, text: string, root: ParentNode = document): void {
  find(selector, root).textContent = text;
}
