/** For tests in other folders, which have no packages of their own. */
export { WebSocket } from "ws";
